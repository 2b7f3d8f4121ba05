//! What it is made with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ChardevConfig;

/// The most ports with names.
pub const MAX_PORTS: usize = 30;

/// A console and ports with names (`virtio-serial-pci`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConsoleConfig {
    /// Its id in the machine; made from driver and slot when not given.
    pub id: Option<String>,
    /// Its PCI slot, 1 to 31; the lowest free one when not given.
    pub addr: Option<u8>,
    /// Where the console (`hvc0`) is, if there is one.
    pub console: Option<ChardevConfig>,
    /// Where each port with a name is; on the command line `port.NAME=BACKEND`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, ChardevConfig>,
}

impl ConsoleConfig {
    /// Finds names that no guest could use, and counts.
    pub fn validate(&self) -> Result<(), String> {
        if self.ports.len() > MAX_PORTS {
            return Err(format!("{} ports; expected at most {MAX_PORTS}", self.ports.len()));
        }
        let unfit = |name: &&String| {
            name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match self.ports.keys().find(unfit) {
            Some(name) => {
                Err(format!("port name '{name}'; expected 1 to 64 printable letters without a space"))
            }
            None => Ok(()),
        }
    }

    /// The ports in the order of their numbers, from 0: number, name, back end. A port's number follows from its name's
    /// place, so that it is the same in every process.
    pub fn numbered(&self) -> Vec<(u32, Option<&str>, &ChardevConfig)> {
        let console = self.console.iter().map(|chardev| (0, None, chardev));
        let named =
            (1..).zip(&self.ports).map(|(number, (name, chardev))| (number, Some(name.as_str()), chardev));
        console.chain(named).collect()
    }
}
