//! What a network device is made of.

use std::os::fd::RawFd;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use crate::config::ConfigError;
use crate::devices::virtio::options::Options;

/// The driver's name, as `--device` has it.
const DRIVER: &str = "virtio-net-pci";

/// The most queue pairs a device may have.
pub const MAX_QUEUES: u16 = 64;

/// The most bytes of an interface's name (`IFNAMSIZ` less its end).
const MAX_NAME: usize = 15;

/// A network device. On the command line:
/// `virtio-net-pci,tap=NAME|fds=N[:N…][,mac=ADDRESS][,queues=N][,vhost=on]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetConfig {
    /// Its id in the machine; made from driver and slot when not given.
    #[serde(default)]
    pub id: Option<String>,
    /// Its PCI slot, 1 to 31; the lowest free one when not given.
    #[serde(default)]
    pub addr: Option<u8>,
    /// The tap's name; it must exist.
    #[serde(default)]
    pub tap: Option<String>,
    /// Descriptors of a tap that a manager has opened, one for each queue pair.
    #[serde(default)]
    pub fds: Vec<RawFd>,
    /// The guest's address; when not given, [`Mac::derive`].
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Number of queue pairs, 1 to [`MAX_QUEUES`].
    #[serde(default = "one")]
    pub queues: u16,
    /// Whether the host's kernel moves the packets (vhost-net).
    #[serde(default)]
    pub vhost: bool,
}

fn one() -> u16 {
    1
}

impl NetConfig {
    /// Finds what can be known to fail before anything is opened.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, value: String, expected: String| {
            Err(ConfigError::Value { key: format!("{DRIVER}.{key}"), value, expected })
        };
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return wrong("queues", self.queues.to_string(), format!("1 to {MAX_QUEUES}"));
        }
        match (&self.tap, self.fds.as_slice()) {
            (Some(name), []) => {
                let valid = (1..=MAX_NAME).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%');
                if !valid {
                    return wrong(
                        "tap",
                        name.clone(),
                        format!("an interface's name of 1 to {MAX_NAME} bytes"),
                    );
                }
            }
            (None, fds @ [_, ..]) => {
                let doubled = fds.iter().enumerate().any(|(i, fd)| fds[..i].contains(fd));
                if doubled || fds.len() != usize::from(self.queues) || fds.iter().any(|fd| *fd < 3) {
                    let expected = format!("{} different numbers from 3 on, one a queue", self.queues);
                    return wrong("fds", format!("{fds:?}"), expected);
                }
            }
            _ => {
                let message = format!("{DRIVER}: give either tap=NAME or fds=N[:N…], not both");
                return Err(ConfigError::Conflict(message));
            }
        }
        Ok(())
    }
}

impl FromStr for NetConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = Options::parse(text)?;
        options.expect_driver(DRIVER)?;
        let tap = options.take("tap");
        let fds = match options.take("fds") {
            None => Vec::new(),
            Some(list) => {
                let fds: Result<_, _> = list.split(':').map(str::parse).collect();
                fds.map_err(|_| options.wrong("fds", &list, "descriptors' numbers with colons between"))?
            }
        };
        let queues = options.take_parsed("queues", &format!("1 to {MAX_QUEUES}"))?;
        let config = Self {
            queues: queues.unwrap_or(if fds.is_empty() { 1 } else { fds.len().min(1 << 15) as u16 }),
            id: options.take("id"),
            addr: options.take_parsed("addr", "a PCI slot from 1 to 31")?,
            tap,
            fds,
            mac: options.take_parsed("mac", "a unicast address, as 52:54:00:12:34:56")?,
            vhost: options.take_switch("vhost", false)?,
        };
        options.finish("id, addr, tap, fds, mac, queues and vhost")?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_is_read_and_round_trips_through_toml() {
        let text = "virtio-net-pci,tap=tap0,mac=52:54:00:00:00:01,queues=2,vhost=on";
        let net: NetConfig = text.parse().unwrap();
        let expected = NetConfig {
            id: None,
            addr: None,
            tap: Some("tap0".into()),
            fds: Vec::new(),
            mac: Some(Mac([0x52, 0x54, 0, 0, 0, 1])),
            queues: 2,
            vhost: true,
        };
        assert_eq!(net, expected);
        assert_eq!(toml::from_str::<NetConfig>(&toml::to_string(&net).unwrap()).unwrap(), expected);
    }

    #[test]
    fn each_descriptor_is_a_queue() {
        let net: NetConfig = "virtio-net-pci,fds=5:7:6".parse().unwrap();
        assert_eq!((net.fds, net.queues, net.tap), (vec![5, 7, 6], 3, None));
    }

    #[test]
    fn each_bad_option_is_refused_and_named() {
        for (text, named) in [
            ("virtio-net-pci", "either tap=NAME or fds="),
            ("virtio-net-pci,tap=t0,fds=5", "not both"),
            ("virtio-blk-pci,tap=t0", "expected virtio-net-pci"),
            ("virtio-net-pci,tap=a-name-that-is-too-long", "virtio-net-pci.tap"),
            ("virtio-net-pci,tap=tap%d", "virtio-net-pci.tap"),
            ("virtio-net-pci,fds=5:5", "2 different numbers"),
            ("virtio-net-pci,fds=0", "from 3 on"),
            ("virtio-net-pci,fds=5:x", "virtio-net-pci.fds"),
            ("virtio-net-pci,fds=5,queues=2", "one a queue"),
            ("virtio-net-pci,tap=t0,queues=65", "1 to 64"),
            ("virtio-net-pci,tap=t0,mac=ff:ff:ff:ff:ff:ff", "unicast"),
            ("virtio-net-pci,tap=t0,vhost=yes", "on or off"),
            ("virtio-net-pci,tap=t0,speed=10", "virtio-net-pci.speed"),
        ] {
            let message = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
