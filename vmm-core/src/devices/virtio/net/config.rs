//! What a network device is made of.

use std::os::fd::RawFd;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::mac::Mac;
use crate::config::ConfigError;

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
    #[serde(default, deserialize_with = "descriptors", skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<RawFd>,
    /// The guest's address; when not given, [`Mac::derive`].
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Number of queue pairs, 1 to [`MAX_QUEUES`]; when not given, one for each descriptor, or one.
    #[serde(default)]
    pub queues: Option<u16>,
    /// Whether the host's kernel moves the packets (vhost-net).
    #[serde(default)]
    pub vhost: bool,
}

impl NetConfig {
    /// How many pairs of queues it has.
    pub fn pairs(&self) -> u16 {
        self.queues.unwrap_or_else(|| u16::try_from(self.fds.len()).unwrap_or(u16::MAX).max(1))
    }

    /// Finds what can be known to fail before anything is opened.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, value: String, expected: String| {
            Err(ConfigError::Value { key: format!("{DRIVER}.{key}"), value, expected })
        };
        let pairs = self.pairs();
        if pairs == 0 || pairs > MAX_QUEUES {
            return wrong("queues", pairs.to_string(), format!("1 to {MAX_QUEUES}"));
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
                if doubled || fds.len() != usize::from(pairs) || fds.iter().any(|fd| *fd < 3) {
                    let expected = format!("{pairs} different numbers from 3 on, one a queue");
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

/// `N:N…` on the command line, a list in TOML.
fn descriptors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RawFd>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        One(RawFd),
        List(Vec<RawFd>),
        Text(String),
    }
    Ok(match Form::deserialize(deserializer)? {
        Form::One(fd) => vec![fd],
        Form::List(fds) => fds,
        Form::Text(text) => {
            let fds: Result<_, _> = text.split(':').map(str::parse).collect();
            fds.map_err(|_| D::Error::custom(format!("fds={text}; expected numbers with colons between")))?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceConfig;

    fn parse(text: &str) -> Result<NetConfig, ConfigError> {
        match text.parse()? {
            DeviceConfig::VirtioNet(config) => config.validate().map(|()| config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_form_is_read_and_round_trips_through_toml() {
        let text = "virtio-net-pci,tap=tap0,mac=52:54:00:00:00:01,queues=2,vhost=on";
        let net = parse(text).unwrap();
        let expected = NetConfig {
            id: None,
            addr: None,
            tap: Some("tap0".into()),
            fds: Vec::new(),
            mac: Some(Mac([0x52, 0x54, 0, 0, 0, 1])),
            queues: Some(2),
            vhost: true,
        };
        assert_eq!(net, expected);
        assert_eq!(toml::from_str::<NetConfig>(&toml::to_string(&net).unwrap()).unwrap(), expected);
    }

    #[test]
    fn each_descriptor_is_a_queue() {
        let net = parse("virtio-net-pci,fds=5:7:6").unwrap();
        assert_eq!((net.pairs(), net.fds, net.tap), (3, vec![5, 7, 6], None));
        assert_eq!(parse("virtio-net-pci,fds=5").unwrap().fds, [5]);
    }

    #[test]
    fn each_bad_option_is_refused_and_named() {
        for (text, named) in [
            ("virtio-net-pci", "either tap=NAME or fds="),
            ("virtio-net-pci,tap=t0,fds=5", "not both"),
            ("virtio-net-pci,tap=a-name-that-is-too-long", "virtio-net-pci.tap"),
            ("virtio-net-pci,tap=tap%d", "virtio-net-pci.tap"),
            ("virtio-net-pci,fds=5:5", "2 different numbers"),
            ("virtio-net-pci,fds=0", "from 3 on"),
            ("virtio-net-pci,fds=5:x", "fds=5:x"),
            ("virtio-net-pci,fds=5,queues=2", "one a queue"),
            ("virtio-net-pci,tap=t0,queues=65", "1 to 64"),
            ("virtio-net-pci,tap=t0,mac=ff:ff:ff:ff:ff:ff", "unicast"),
            ("virtio-net-pci,tap=t0,vhost=yes", "boolean"),
            ("virtio-net-pci,tap=t0,speed=10", "speed"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
