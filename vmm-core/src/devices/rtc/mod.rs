//! Temporary stand-in.
use std::sync::Arc;
use crate::cpr::format::*;
use crate::devices::*;
/// Stub.
#[derive(Debug)]
pub struct Rtc;
/// Stub.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct RtcState;
impl Section for RtcState { const KIND: SectionKind = SectionKind::Rtc; const VERSION: u16 = 1; const OLDEST: u16 = 1; }
impl Device for Rtc {
 fn id(&self) -> &'static str { "rtc" }
 fn save(&self, _: &mut StateWriter) -> Result<(), DeviceError> { Ok(()) }
 fn load(&self, _: &mut StateReader) -> Result<(), DeviceError> { Ok(()) }
}
impl vm_device::DevicePio for Rtc {
 fn pio_read(&self, _: vm_device::bus::PioAddress, _: u16, _: &mut [u8]) {}
 fn pio_write(&self, _: vm_device::bus::PioAddress, _: u16, _: &[u8]) {}
}
#[allow(missing_docs)] impl Rtc { pub fn new() -> Arc<Self> { Arc::new(Self) } }
