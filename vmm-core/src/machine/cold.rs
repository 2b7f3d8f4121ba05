//! A cold boot: a kernel or a firmware, in a machine made for it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::backends::{Backends, Source};
use super::build::{self, Parts};
use super::events::EventSink;
use super::run_state::RunState;
use super::{Loaded, Machine, MachineError};
use crate::config::MachineConfig;
use crate::cpr::fds::FdTable;
use crate::cpr::liveupdate;
use crate::cpr::reboot::parts;
use crate::memory::{self, RamBlock};
use crate::x86::boot;

/// The largest firmware image that is read.
const MAX_FIRMWARE: u64 = 16 << 20;

fn read_firmware(path: &Path) -> Result<Vec<u8>, MachineError> {
    let failed = |source| MachineError::Firmware { path: path.display().to_string(), source };
    let file = File::open(path).map_err(failed)?;
    let mut image = Vec::new();
    file.take(MAX_FIRMWARE + 1).read_to_end(&mut image).map_err(failed)?;
    Ok(image)
}

/// What becomes of a saved guest that waits for its state to be loaded, in the RAM that another is to be booted in, or with a keeper
/// under its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Waiting {
    /// It waits on: the boot is refused.
    #[default]
    Kept,
    /// In that RAM it is lost.
    Discarded,
    /// It waits on, if there is one: the RAM was this guest's up to now, which is booted again.
    Elsewhere,
}

impl Machine {
    /// Builds a machine and puts what it boots in its memory.
    pub fn boot(config: MachineConfig, waiting: Waiting, events: EventSink) -> Result<Loaded, MachineError> {
        Self::boot_on(config, &mut Source::New, waiting, events)
    }

    /// The same guest from its beginning, on the descriptors of its devices that are kept.
    pub fn reboot(
        config: MachineConfig,
        mut kept: FdTable,
        events: EventSink,
    ) -> Result<Loaded, MachineError> {
        Self::boot_on(config, &mut Source::Restarted(&mut kept), Waiting::Elsewhere, events)
    }

    fn boot_on(
        mut config: MachineConfig,
        source: &mut Source<'_>,
        waiting: Waiting,
        events: EventSink,
    ) -> Result<Loaded, MachineError> {
        config.validate()?;
        config.settle();
        if waiting == Waiting::Kept {
            liveupdate::refuse_waiting(&config.name)?;
        }
        let backends = Backends::make(&config, source)?;
        let ram = RamBlock::create(memory::RAM, &config.memory)?;
        parts::make_room(&ram, waiting)?;
        ram.clear_stamp()?;
        let mut blocks = vec![ram];
        if let Some(firmware) = &config.boot.firmware {
            blocks.push(RamBlock::create_rom(memory::ROM, &read_firmware(firmware)?)?);
        }
        let machine = build::assemble(
            Parts { config, platform: None, blocks, backends, events },
            RunState::Prelaunch,
            None,
        )?;
        let entry = boot::load(
            &machine.config.boot,
            machine.ram.memory(),
            machine.config.memory.size.0,
            machine.config.cpus,
        )?;
        machine.vcpus.boot(&entry)?;
        Ok(Loaded { machine, run_state: RunState::Running, wake: false })
    }
}
