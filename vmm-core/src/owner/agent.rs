//! Where the guest's own agent is reached, which suspends it when it is asked to (QEMU's guest agent protocol).

use std::path::PathBuf;

use crate::config::{ChardevConfig, DeviceConfig, MachineConfig};

/// The port's name, at which an agent in the guest looks for it.
const PORT: &str = "org.qemu.guest_agent.0";

/// The socket that is the agent's port. An error says why there is none, and what would do.
pub(super) fn socket(config: &MachineConfig) -> Result<PathBuf, String> {
    let ports = config.devices.iter().filter_map(|device| match device {
        DeviceConfig::VirtioSerial(config) => config.ports.get(PORT),
        _ => None,
    });
    let way_out = format!(
        "boot it with --device virtio-serial-pci,port.{PORT}=unix:PATH, or have it suspend by itself"
    );
    match ports.into_iter().next() {
        Some(ChardevConfig::Unix(path)) => {
            std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
        }
        Some(other) => {
            Err(format!("the guest's port {PORT} is on {other}, where nobody can ask it: {way_out}"))
        }
        None => Err(format!("the guest has no port {PORT}: {way_out}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(devices: &str) -> MachineConfig {
        toml::from_str(&format!("name = 'g'\n[memory]\nsize = '1G'\n[boot]\nkernel = '/k'\n{devices}"))
            .unwrap()
    }

    #[test]
    fn an_agent_is_where_its_port_is_and_only_a_socket_can_be_asked() {
        let port = |on: &str| {
            config(&format!("[[device]]\ndriver = 'virtio-serial-pci'\nports = {{ '{PORT}' = '{on}' }}"))
        };
        assert_eq!(socket(&port("unix:/run/a")), Ok("/run/a".into()));
        assert!(socket(&port("pty")).unwrap_err().contains("on pty"));
        let error = socket(&config("")).unwrap_err();
        assert!(error.contains("no port org.qemu.guest_agent.0") && error.contains("--device"), "{error}");
    }
}
