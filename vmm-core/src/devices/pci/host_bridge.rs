//! The host bridge at 00:00.0: there to be found, with nothing in it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bar::Bar;
use super::config_space::{ConfigSpace, Identity};
use super::function::PciFunction;
use super::state::PciConfigState;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::{Device, DeviceError};

const ID: &str = "pci-host";
/// Its slot, and the instance of its section.
const SLOT: u32 = 0;
/// The generic PCI Express host bridge.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    interrupt_pin: false,
};

/// The host bridge.
#[derive(Debug)]
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// A bridge after reset.
    #[expect(clippy::new_without_default, reason = "a device is made, not defaulted")]
    pub fn new() -> Self {
        Self { config: Mutex::new(ConfigSpace::new(IDENTITY, &[])) }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.lock().write(offset, data);
    }

    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }
}

impl Device for HostBridge {
    fn id(&self) -> &str {
        ID
    }

    fn save(&self, out: &mut StateWriter) -> Result<(), DeviceError> {
        Ok(out.put(SLOT, &self.lock().state())?)
    }

    /// State of builds that had no PCI has nothing of it.
    fn load(&self, state: &mut StateReader) -> Result<(), DeviceError> {
        match state.take_optional::<PciConfigState>(SLOT)? {
            Some(saved) => self.lock().load(&saved).map_err(DeviceError::impossible(ID)),
            None => Ok(()),
        }
    }
}
