//! Temporary stand-in.
use std::sync::Arc;
use crate::cpr::format::*;
use crate::devices::*;
/// Stub.
#[derive(Debug)]
pub struct Pm;
/// Stub.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct PmState;
impl Section for PmState { const KIND: SectionKind = SectionKind::Pm; const VERSION: u16 = 1; const OLDEST: u16 = 1; }
impl Device for Pm {
 fn id(&self) -> &'static str { "pm" }
 fn save(&self, _: &mut StateWriter) -> Result<(), DeviceError> { Ok(()) }
 fn load(&self, _: &mut StateReader) -> Result<(), DeviceError> { Ok(()) }
}
impl vm_device::DevicePio for Pm {
 fn pio_read(&self, _: vm_device::bus::PioAddress, _: u16, _: &mut [u8]) {}
 fn pio_write(&self, _: vm_device::bus::PioAddress, _: u16, _: &[u8]) {}
}
#[allow(missing_docs)] impl Pm { pub fn new(_: Arc<dyn IrqLine>, _: RequestSink) -> Arc<Self> { Arc::new(Self) } pub fn press_power_button(&self) {} }
