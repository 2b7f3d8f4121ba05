//! What a disk is made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// The driver's name, as `--device` has it.
const DRIVER: &str = "virtio-blk-pci";

/// The most queues a disk may have.
pub const MAX_QUEUES: u16 = 64;

/// The most bytes of a serial number (virtio 1.2, section 5.2.6: VIRTIO_BLK_T_GET_ID).
pub const MAX_SERIAL: usize = 20;

/// A disk. On the command line:
/// `virtio-blk-pci,path=PATH[,readonly=on][,direct=on][,serial=TEXT][,queues=N][,aio=io_uring|threads]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlockConfig {
    /// Its id in the machine; made from driver and slot when not given.
    #[serde(default)]
    pub id: Option<String>,
    /// Its PCI slot, 1 to 31; the lowest free one when not given.
    #[serde(default)]
    pub addr: Option<u8>,
    /// A raw image file or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Whether the host's page cache is passed by (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// What the guest sees as the disk's serial number: 1 to [`MAX_SERIAL`] printable ASCII characters.
    #[serde(default)]
    pub serial: Option<String>,
    /// Number of request queues, 1 to [`MAX_QUEUES`].
    #[serde(default = "one")]
    pub queues: u16,
    /// How I/O is done; when not given, io_uring where the host has it, threads where not.
    #[serde(default)]
    pub aio: Option<Aio>,
    /// Whether an image is taken that is not what it was when the guest was saved. Said anew for each load.
    #[serde(skip)]
    pub accept_changed: bool,
}

/// How I/O is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aio {
    /// By io_uring(7).
    #[serde(rename = "io_uring")]
    IoUring,
    /// By threads that wait for each request.
    #[serde(rename = "threads")]
    Threads,
}

fn one() -> u16 {
    1
}

impl BlockConfig {
    /// Finds what can be known to fail before anything is opened.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, value: String, expected: String| {
            Err(ConfigError::Value { key: format!("{DRIVER}.{key}"), value, expected })
        };
        if self.path.as_os_str().is_empty() {
            return wrong("path", String::new(), "a raw image file or a block device".into());
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return wrong("queues", self.queues.to_string(), format!("1 to {MAX_QUEUES}"));
        }
        match &self.serial {
            Some(serial) if !valid_serial(serial) => {
                wrong("serial", serial.clone(), format!("1 to {MAX_SERIAL} printable ASCII characters"))
            }
            _ => Ok(()),
        }
    }
}

fn valid_serial(serial: &str) -> bool {
    (1..=MAX_SERIAL).contains(&serial.len()) && serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceConfig;

    /// What the command line and a file say of a disk.
    fn disk(text: &str) -> Result<BlockConfig, ConfigError> {
        match text.parse()? {
            DeviceConfig::VirtioBlk(disk) => disk.validate().map(|()| disk),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_form_is_read_and_round_trips_through_toml() {
        let text = "virtio-blk-pci,path=/vm/a,,b.img,readonly=on,direct=on,serial=123,queues=4,aio=threads";
        let disk = disk(text).unwrap();
        let expected = BlockConfig {
            id: None,
            addr: None,
            path: "/vm/a,b.img".into(),
            readonly: true,
            direct: true,
            serial: Some("123".into()),
            queues: 4,
            aio: Some(Aio::Threads),
            accept_changed: false,
        };
        assert_eq!(disk, expected);
        assert_eq!(toml::from_str::<BlockConfig>(&toml::to_string(&disk).unwrap()).unwrap(), expected);
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let disk = disk("virtio-blk-pci,path=/dev/vdb").unwrap();
        assert_eq!(disk, toml::from_str("path = \"/dev/vdb\"").unwrap());
        assert!(!disk.readonly && !disk.direct && disk.queues == 1 && disk.aio.is_none());
    }

    #[test]
    fn each_bad_option_is_refused_and_named() {
        for (text, named) in [
            ("virtio-blk-pci", "path"),
            ("virtio-blk-pci,path=", "virtio-blk-pci.path"),
            ("virtio-blk-pci,path=/a,readonly=yes", "a boolean"),
            ("virtio-blk-pci,path=/a,queues=0", "expected 1 to 64"),
            ("virtio-blk-pci,path=/a,queues=many", "many"),
            ("virtio-blk-pci,path=/a,aio=native", "`io_uring` or `threads`"),
            ("virtio-blk-pci,path=/a,serial=123456789012345678901", "1 to 20 printable"),
            ("virtio-blk-pci,path=/a,serial=\n", "1 to 20 printable"),
            ("virtio-blk-pci,path=/a,cache=none", "`cache`"),
        ] {
            let message = disk(text).unwrap_err().to_string();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
