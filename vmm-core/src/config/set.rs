//! What may differ between the host that saved a guest and the one that loads it.

use super::{Backing, ConfigError, MachineConfig};

const SETTABLE: &str = "one of memory.path=PATH, serial=…, cpu.mask=FEATURE[,FEATURE…], name=NAME";

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
            Backing::File { path } | Backing::Dax { path } => *path = value.into(),
            Backing::Memfd | Backing::Hugetlb { .. } => {
                return Err(refused("RAM with a path: this guest's RAM is an anonymous memfd"));
            }
        },
        "serial" => config.serial = value.parse()?,
        "cpu.mask" => {
            config.cpu.mask = value.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
        }
        "name" => config.name = value.into(),
        _ => return Err(refused(SETTABLE)),
    }
    config.validate()
}
