//! Devices that are given by name, with the names that QEMU's `-device` has.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Uuid};
use crate::devices::pci::SLOTS;
use crate::devices::vfio::VfioConfig;
use crate::devices::virtio::balloon::BalloonConfig;
use crate::devices::virtio::block::BlockConfig;
use crate::devices::virtio::console::ConsoleConfig;
use crate::devices::virtio::net::{Mac, NetConfig};
use crate::devices::virtio::rng::RngConfig;
use crate::devices::virtio::vsock::VsockConfig;

/// Makes [`DeviceConfig`] of one row a driver: its variant, its configuration, the name that QEMU's `-device` has for it.
macro_rules! drivers {
    ($($(#[$doc:meta])* $variant:ident($config:ty) = $driver:literal,)*) => {
        /// A device on the PCI bus. Written `DRIVER[,id=ID][,addr=SLOT]…` on the command line, `[[device]]` with `driver`
        /// in TOML.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "driver")]
        pub enum DeviceConfig {
            $($(#[$doc])* #[serde(rename = $driver)] $variant($config),)*
        }

        impl DeviceConfig {
            /// The driver's name.
            pub fn driver(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $driver,)*
                }
            }

            /// Its id, once it is settled.
            pub fn id(&self) -> Option<&str> {
                match self {
                    $(Self::$variant(config) => config.id.as_deref(),)*
                }
            }

            /// Its slot, once it is settled.
            pub fn addr(&self) -> Option<u8> {
                match self {
                    $(Self::$variant(config) => config.addr,)*
                }
            }

            fn place(&mut self) -> (&mut Option<String>, &mut Option<u8>) {
                match self {
                    $(Self::$variant(config) => (&mut config.id, &mut config.addr),)*
                }
            }
        }
    };
}

drivers! {
    /// An entropy device.
    VirtioRng(RngConfig) = "virtio-rng-pci",
    /// A memory balloon.
    VirtioBalloon(BalloonConfig) = "virtio-balloon-pci",
    /// A disk.
    VirtioBlk(BlockConfig) = "virtio-blk-pci",
    /// A network device.
    VirtioNet(NetConfig) = "virtio-net-pci",
    /// A console and ports with names.
    VirtioSerial(ConsoleConfig) = "virtio-serial-pci",
    /// Sockets between guest and host.
    VhostVsock(VsockConfig) = "vhost-vsock-pci",
    /// A device of the host.
    VfioPci(VfioConfig) = "vfio-pci",
}

impl DeviceConfig {
    /// Whether it is a device of the host.
    pub fn is_assigned(&self) -> bool {
        matches!(self, Self::VfioPci(_))
    }
}

impl FromStr for DeviceConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused =
            |expected: String| ConfigError::Value { key: "device".into(), value: text.into(), expected };
        let mut words = split(text).into_iter();
        let mut table = toml::Table::new();
        table.insert("driver".into(), words.next().unwrap_or_default().into());
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| refused("DRIVER[,KEY=VALUE…]".into()))?;
            // `port.NAME=…`: names of their own, in a table of their own.
            let twice = match key.strip_prefix("port.") {
                Some(name) => match table.entry("ports").or_insert_with(|| toml::Table::new().into()) {
                    toml::Value::Table(ports) => ports.insert(name.into(), value.into()).is_some(),
                    _ => true,
                },
                None => table.insert(key.into(), value_of(key, value)).is_some(),
            };
            if twice {
                return Err(refused(format!("each key once: '{key}' is there twice")));
            }
        }
        table.try_into().map_err(|error: toml::de::Error| refused(error.message().to_owned()))
    }
}

/// Splits at single commas; a doubled one stands for itself.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// Keys whose values are text, whatever they look like.
const TEXT: [&str; 7] = ["host", "id", "mac", "path", "serial", "sysfsdev", "tap"];

/// A number, a switch, or text.
fn value_of(key: &str, text: &str) -> toml::Value {
    if TEXT.contains(&key) {
        return text.into();
    }
    let number = match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match (number, text) {
        (Ok(number), _) => number.into(),
        (_, "on" | "true") => true.into(),
        (_, "off" | "false") => false.into(),
        _ => text.into(),
    }
}

/// Gives ids, slots and addresses to devices that have none: the same ones each time, and none to one that has.
pub(super) fn settle(devices: &mut [DeviceConfig], guest: Uuid) {
    let mut taken: BTreeSet<u8> = devices.iter().filter_map(DeviceConfig::addr).collect();
    for device in devices {
        let driver = device.driver();
        let (id, addr) = device.place();
        if addr.is_none() {
            *addr = (1..SLOTS).find(|slot| !taken.contains(slot));
            taken.extend(*addr);
        }
        if let (None, Some(addr)) = (&id, addr) {
            *id = Some(format!("{}-{addr}", driver.strip_suffix("-pci").unwrap_or(driver)));
        }
        if let DeviceConfig::VirtioNet(NetConfig { mac: mac @ None, addr: Some(addr), .. }) = device {
            *mac = Some(Mac::derive(guest, (*addr).into()));
        }
    }
}

/// Finds ids and slots that are not valid, or are used twice.
pub(super) fn validate(devices: &[DeviceConfig]) -> Result<(), ConfigError> {
    let refused = |key: &str, value: String, expected: &str| {
        Err(ConfigError::Value { key: format!("device {key}"), value, expected: expected.into() })
    };
    if devices.len() >= usize::from(SLOTS) {
        return refused("list", format!("{} devices", devices.len()), "at most 31, the slots of the PCI bus");
    }
    let is_balloon = |device: &&DeviceConfig| matches!(device, DeviceConfig::VirtioBalloon(_));
    if devices.iter().filter(is_balloon).count() > 1 {
        return refused("list", "several balloons".into(), "at most one");
    }
    if devices.iter().any(DeviceConfig::is_assigned) && devices.iter().any(|device| is_balloon(&device)) {
        let expected = "one of both: what an assigned device may write to cannot be given up";
        return refused("list", "a balloon and an assigned device".into(), expected);
    }
    let (mut ids, mut slots) = (BTreeSet::new(), BTreeSet::new());
    for device in devices {
        if let DeviceConfig::VirtioBlk(config) = device {
            config.validate()?;
        }
        if let DeviceConfig::VirtioNet(config) = device {
            config.validate()?;
        }
        if let DeviceConfig::VfioPci(config) = device {
            config.validate().or_else(|(found, expected)| refused("vfio-pci", found, expected))?;
        }
        if let DeviceConfig::VirtioSerial(config) = device {
            config
                .validate()
                .or_else(|why| refused("virtio-serial-pci", why, "ports that a guest can use"))?;
        }
        if let DeviceConfig::VhostVsock(config) = device {
            config
                .validate()
                .or_else(|why| refused("vhost-vsock-pci", why, "an address that a guest can have"))?;
        }
        if let Some(id) = device.id() {
            let well_formed = (1..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !well_formed {
                return refused("id", id.into(), "1 to 64 letters, digits, '-', '_' or '.'");
            }
            if OWN_IDS.contains(&id) || !ids.insert(id) {
                return refused("id", id.into(), "an id that no other device has");
            }
        }
        if let Some(addr) = device.addr()
            && (addr == 0 || addr >= SLOTS || !slots.insert(addr))
        {
            return refused("addr", addr.to_string(), "a PCI slot from 1 to 31 that no other device has");
        }
    }
    Ok(())
}

/// Ids of what every machine has.
const OWN_IDS: [&str; 9] =
    ["serial0", "pm", "rtc", "i8042", "pci", "pci-host", "vfio", "vfio-type1", "vfio-iommufd"];

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(texts: &[&str]) -> Vec<DeviceConfig> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_device_is_read_from_one_word_with_a_slot_in_either_base() {
        for text in ["virtio-rng-pci,id=rng0,addr=0x12", "virtio-rng-pci,addr=18,id=rng0"] {
            let config = RngConfig { id: Some("rng0".into()), addr: Some(18) };
            assert_eq!(text.parse::<DeviceConfig>().unwrap(), DeviceConfig::VirtioRng(config));
        }
    }

    #[test]
    fn ports_are_read_by_their_names() {
        let text = "virtio-serial-pci,console=pty,port.org.qemu.guest_agent.0=unix:/run/agent,port.log=file:/tmp/log";
        let DeviceConfig::VirtioSerial(config) = text.parse().unwrap() else { panic!() };
        let ports: Vec<_> =
            config.numbered().into_iter().map(|(n, name, on)| (n, name, on.to_string())).collect();
        let expected = [
            (0, None, "pty"),
            (1, Some("log"), "file:/tmp/log"),
            (2, Some("org.qemu.guest_agent.0"), "unix:/run/agent"),
        ];
        assert_eq!(ports, expected.map(|(n, name, on)| (n, name, on.to_owned())));
        assert!("virtio-serial-pci,port.a=pty,port.a=null".parse::<DeviceConfig>().is_err());
        assert!("virtio-serial-pci,port.a=nowhere".parse::<DeviceConfig>().is_err());
    }

    #[test]
    fn an_unknown_driver_key_or_form_is_refused_and_named() {
        for (text, named) in [
            ("virtio-rgn-pci", "virtio-rgn-pci"),
            ("virtio-rng-pci,colour=red", "colour"),
            ("virtio-rng-pci,id", "KEY=VALUE"),
            ("virtio-rng-pci,id=a,id=b", "twice"),
            ("virtio-rng-pci,addr=256", "256"),
        ] {
            let error = text.parse::<DeviceConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn slots_are_given_around_those_that_were_asked_for_and_stay() {
        let mut list = devices(&["virtio-rng-pci", "virtio-rng-pci,addr=1,id=x", "virtio-rng-pci"]);
        settle(&mut list, Uuid([7; 16]));
        let places: Vec<_> =
            list.iter().map(|device| (device.id().unwrap(), device.addr().unwrap())).collect();
        assert_eq!(places, [("virtio-rng-2", 2), ("x", 1), ("virtio-rng-3", 3)]);
        let settled = list.clone();
        settle(&mut list, Uuid([7; 16]));
        assert_eq!(list, settled);
    }

    #[test]
    fn an_id_or_a_slot_that_is_there_twice_is_refused() {
        for texts in [
            ["virtio-rng-pci,id=a", "virtio-rng-pci,id=a"],
            ["virtio-rng-pci,addr=3", "virtio-rng-pci,addr=3"],
            ["virtio-rng-pci", "virtio-rng-pci,addr=0"],
            ["virtio-rng-pci", "virtio-rng-pci,addr=32"],
            ["virtio-rng-pci", "virtio-rng-pci,id=serial0"],
            ["virtio-rng-pci", "virtio-rng-pci,id=a/b"],
        ] {
            assert!(validate(&devices(&texts)).is_err(), "{texts:?}");
        }
    }
}
