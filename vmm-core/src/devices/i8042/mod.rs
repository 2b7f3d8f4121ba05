//! Temporary stand-in.
use std::sync::Arc;
use crate::cpr::format::*;
use crate::devices::*;
/// Stub.
#[derive(Debug)]
pub struct I8042;
/// Stub.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct I8042State;
impl Section for I8042State { const KIND: SectionKind = SectionKind::I8042; const VERSION: u16 = 1; const OLDEST: u16 = 1; }
impl Device for I8042 {
 fn id(&self) -> &'static str { "i8042" }
 fn save(&self, _: &mut StateWriter) -> Result<(), DeviceError> { Ok(()) }
 fn load(&self, _: &mut StateReader) -> Result<(), DeviceError> { Ok(()) }
}
impl vm_device::DevicePio for I8042 {
 fn pio_read(&self, _: vm_device::bus::PioAddress, _: u16, _: &mut [u8]) {}
 fn pio_write(&self, _: vm_device::bus::PioAddress, _: u16, _: &[u8]) {}
}
#[allow(missing_docs)] impl I8042 { pub fn new(_: RequestSink) -> Arc<Self> { Arc::new(Self) } }
