//! A guest whose root is a disk with another system's userland: that one's init takes over, and this program is a service
//! of it.
//!
//! 1. What the service needs lies in /run, which goes along: this program, its unit, how the network is set up, and the
//!    patience that a slow machine needs. The root is used as it is.
//! 2. The root is mounted read-only, as any initial RAM disk of Debian's leaves it; its init makes it writable.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use guest_init::early;
use nix::mount::{MsFlags, mount};

use crate::disk;
use crate::options::Options;

/// Where this program lies for the service.
const PROGRAM: &str = "/run/guest-init";
const UNITS: &str = "/run/systemd/system";
const NETWORKS: &str = "/run/systemd/network";
const MANAGER: &str = "/run/systemd/system.conf.d";
/// What is given up after 90 seconds elsewhere may still come on an emulated host that is kept waiting.
const PATIENCE: &str = "[Manager]\nDefaultTimeoutStartSec=300\nDefaultDeviceTimeoutSec=300\n";
const SERVICE: &str = "guest.service";
/// Where the root is mounted before it becomes the root.
const ROOT: &str = "/root";

/// Gives this process to the init on the root's disk.
pub fn enter(device: &str, options: &Options) -> Result<Infallible, Box<dyn std::error::Error>> {
    early::mounts(&[("/run", "tmpfs")])?;
    prepare(options)?;
    fs::create_dir_all(ROOT)?;
    let node = disk::node(device);
    mount(Some(&node), ROOT, Some("ext4"), MsFlags::MS_RDONLY, None::<&str>)
        .map_err(|error| format!("mounting {} as the root: {error}", node.display()))?;
    // What is left of the initial RAM disk would hold memory for good.
    let _ = fs::remove_dir_all(early::MODULES);
    let _ = fs::remove_file("/init");
    Ok(early::switch_root(ROOT)?)
}

fn prepare(options: &Options) -> io::Result<()> {
    fs::copy("/proc/self/exe", PROGRAM)?;
    let wants = format!("{UNITS}/multi-user.target.wants");
    for directory in [&wants, NETWORKS, MANAGER] {
        fs::create_dir_all(directory)?;
    }
    fs::write(Path::new(MANAGER).join("10-lab.conf"), PATIENCE)?;
    fs::write(Path::new(UNITS).join(SERVICE), service(options))?;
    symlink(format!("../{SERVICE}"), Path::new(&wants).join(SERVICE))?;
    // systemd puts a getty on a virtio console; this one is the service's.
    symlink("/dev/null", format!("{UNITS}/serial-getty@{}.service", options.console))?;
    if let Some(network) = network(options) {
        fs::write(Path::new(NETWORKS).join("10-lab.network"), network)?;
    }
    Ok(())
}

/// The service starts last, so that its load does not keep the boot from its end.
fn service(options: &Options) -> String {
    let online =
        if options.net.is_some() { "Wants=network-online.target\nAfter=network-online.target\n" } else { "" };
    format!(
        "[Unit]\nDescription=The lab's watch over its guest\nAfter=multi-user.target\n{online}\
         FailureAction=poweroff-force\n\n\
         [Service]\nExecStart={PROGRAM}\nStandardOutput=journal+console\nStandardError=journal+console\n"
    )
}

/// What networkd is told of the network.
fn network(options: &Options) -> Option<String> {
    let address = options.net?;
    Some(format!(
        "[Match]\nType=ether\n\n[Network]\nAddress={address}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_waits_for_the_network_if_there_is_one() {
        let without = Options::from_cmdline("guest.root=vda guest.console=hvc0");
        assert!(service(&without).contains("ExecStart=/run/guest-init\n"));
        assert!(!service(&without).contains("network"));
        assert_eq!(network(&without), None);
        let with = Options::from_cmdline("guest.root=vda guest.net=192.0.2.2");
        assert!(service(&with).contains("\nAfter=network-online.target\n"));
        assert!(network(&with).unwrap().contains("\nAddress=192.0.2.2/24\n"));
    }
}
