//! What the bus wants of a function.

use super::bar::Bar;
use crate::devices::Device;

/// A type 0 function. Every method may be called on a vCPU thread.
pub trait PciFunction: Device {
    /// Reads configuration space; `offset` and `data` lie in its 4 KiB.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes configuration space. The bus looks at [`Self::bars`] after that. Writes to all functions come one at a time.
    fn write_config(&self, offset: usize, data: &[u8]);

    /// Its BARs as its registers say.
    fn bars(&self) -> Vec<Bar>;

    /// A BAR decodes at this address from now on, or nowhere. What is bound to addresses moves along.
    fn place_bar(&self, _bar: usize, _at: Option<u64>) {}

    /// Reads from a BAR; `data` lies in it.
    fn read_bar(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Writes to a BAR; `data` lies in it.
    fn write_bar(&self, _bar: usize, _offset: u64, _data: &[u8]) {}
}
