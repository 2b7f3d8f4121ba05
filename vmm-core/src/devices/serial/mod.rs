//! Temporary stand-in.
use std::sync::Arc;
use crate::cpr::format::*;
use crate::devices::*;
/// Stub.
#[derive(Debug)]
pub struct Serial;
/// Stub.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct SerialState;
impl Section for SerialState { const KIND: SectionKind = SectionKind::Serial; const VERSION: u16 = 1; const OLDEST: u16 = 1; }
impl Device for Serial {
 fn id(&self) -> &'static str { "serial" }
 fn save(&self, _: &mut StateWriter) -> Result<(), DeviceError> { Ok(()) }
 fn load(&self, _: &mut StateReader) -> Result<(), DeviceError> { Ok(()) }
}
impl vm_device::DevicePio for Serial {
 fn pio_read(&self, _: vm_device::bus::PioAddress, _: u16, _: &mut [u8]) {}
 fn pio_write(&self, _: vm_device::bus::PioAddress, _: u16, _: &[u8]) {}
}
#[allow(missing_docs)] impl Serial { pub fn new(_: &'static str, _: Arc<dyn IrqLine>, _: chardev::Chardev) -> Arc<Self> { Arc::new(Self) }
pub fn subscriber(&self) -> Arc<std::sync::Mutex<dyn event_manager::MutEventSubscriber + Send>> { struct N; impl event_manager::MutEventSubscriber for N { fn process(&mut self, _: event_manager::Events, _: &mut event_manager::EventOps) {} fn init(&mut self, _: &mut event_manager::EventOps) {} } Arc::new(std::sync::Mutex::new(N)) } }
