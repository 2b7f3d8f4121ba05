//! What may differ between the host that saved a guest and the one that loads it.

use super::memory::on_or_off;
use super::{Backing, ConfigError, DeviceConfig, MachineConfig};

const SETTABLE: &str = "one of memory.path=PATH, memory.pmem=on|off, serial=…, cpu.mask=FEATURE[,FEATURE…], name=NAME, \
                        DISK-ID.path=PATH, DISK-ID.changed=accept";

/// Applies one `KEY=VALUE`; a key that the guest was built with is refused.
pub(super) fn apply(config: &mut MachineConfig, assignment: &str) -> Result<(), ConfigError> {
    let refused = |expected: &str| ConfigError::Value {
        key: "--set".into(),
        value: assignment.into(),
        expected: expected.into(),
    };
    let (key, value) = assignment.split_once('=').ok_or_else(|| refused(SETTABLE))?;
    match key {
        "memory.path" => match &mut config.memory.backing {
            Backing::File { path } | Backing::Dax { path, .. } => *path = value.into(),
            Backing::Memfd | Backing::Hugetlb { .. } => {
                return Err(refused("RAM with a path: this guest's RAM is an anonymous memfd"));
            }
        },
        "memory.pmem" => match (&mut config.memory.backing, on_or_off(value)) {
            (Backing::Dax { pmem, .. }, Some(on)) => *pmem = on,
            _ => return Err(refused("memory.pmem=on or memory.pmem=off, of a guest with backing=dax")),
        },
        "serial" => config.serial = value.parse()?,
        "cpu.mask" => {
            config.cpu.mask = value.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
        }
        "name" => config.name = value.into(),
        _ => of_device(config, key, value).map_err(|expected| refused(&expected))?,
    }
    config.validate()
}

/// Applies a key of one device, `ID.KEY`. An error is what was expected.
fn of_device(config: &mut MachineConfig, key: &str, value: &str) -> Result<(), String> {
    // An id may have dots in it, a key has none.
    let (id, key) = key.rsplit_once('.').ok_or(SETTABLE)?;
    let device = config.devices.iter_mut().find(|device| device.id() == Some(id));
    match (device, key, value) {
        (Some(DeviceConfig::VirtioBlk(disk)), "path", path) => disk.path = path.into(),
        (Some(DeviceConfig::VirtioBlk(disk)), "changed", "accept") => disk.accept_changed = true,
        (Some(DeviceConfig::VirtioBlk(_)), "changed", _) => return Err(format!("{id}.changed=accept")),
        _ => return Err(SETTABLE.into()),
    }
    Ok(())
}
