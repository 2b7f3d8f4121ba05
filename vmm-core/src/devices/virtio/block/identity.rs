//! Which image it is, so that another one, or the same one changed, is noticed.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::probe::{self, ImageKind};

/// Where the kernel names the boot that it is in.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Which image it is.
///
/// Of a file: its device, inode, size and modification time. Of a block device: its number, its size and, where the
/// kernel knows them, its hardware's name and its sequence number. Device and sequence numbers are given anew at each
/// boot, and only compared within one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// The boot that it was seen in (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// What it is.
    pub kind: ImageKind,
    /// Bytes.
    pub size: u64,
    /// `st_dev` of a file, `st_rdev` of a block device.
    pub device: u64,
    /// A file's inode; 0 for a block device, whose node says nothing about it.
    pub inode: u64,
    /// A file's modification time in ns since the epoch; 0 for a block device.
    pub modified: i64,
    /// What is known of a block device's hardware.
    pub hardware: Option<DeviceIdentity>,
}

/// What is known of a block device's hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIdentity {
    /// Its world-wide name, its serial number, a device-mapper UUID or a loop device's file.
    pub name: Option<String>,
    /// Which part of it; `None` for the whole.
    pub partition: Option<String>,
    /// Counts up with each medium that any device gets (`diskseq`).
    pub sequence: Option<String>,
}

impl ImageIdentity {
    /// Looks at an open image.
    pub(super) fn of(file: &File, kind: ImageKind) -> io::Result<Self> {
        let (stat, size) = (file.metadata()?, probe::size(file, kind)?);
        let boot = fs::read_to_string(BOOT_ID)?.trim_end().to_owned();
        let modified = stat.mtime().saturating_mul(1_000_000_000).saturating_add(stat.mtime_nsec());
        Ok(match kind {
            ImageKind::File => {
                Self { boot, kind, size, device: stat.dev(), inode: stat.ino(), modified, hardware: None }
            }
            ImageKind::BlockDevice => {
                let hardware = Some(DeviceIdentity::of(file)?);
                Self { boot, kind, size, device: stat.rdev(), inode: 0, modified: 0, hardware }
            }
        })
    }

    /// What differs between the image as it was and as it is `now`; empty if it is the same and unchanged.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let bytes = |of: &Self| format!("{} bytes", of.size);
        let time = |of: &Self| {
            let (s, ns) = (of.modified.div_euclid(1_000_000_000), of.modified.rem_euclid(1_000_000_000));
            format!("{s}.{ns:09}")
        };
        let mut differences = self.replacements(now);
        differences.extend(differing("size", [self, now].map(bytes)));
        differences.extend(differing("modification time", [self, now].map(time)));
        differences
    }

    /// What shows that another image is there `now`, whatever was done to either; empty if it is the same one.
    pub fn replacements(&self, now: &Self) -> Vec<String> {
        let device = |of: &Self| format!("{}:{}", libc::major(of.device), libc::minor(of.device));
        let shown = |of: &Self, what: fn(DeviceIdentity) -> Option<String>| {
            of.hardware.clone().and_then(what).unwrap_or_else(|| "unknown".into())
        };
        let aspect = |name, what| differing(name, [self, now].map(|of| shown(of, what)));
        let mut differences = Vec::new();
        differences.extend(differing("kind", [self.kind, now.kind]));
        differences.extend(differing("inode", [self.inode, now.inode]));
        differences.extend(aspect("hardware", |of| of.name));
        differences.extend(aspect("partition", |of| of.partition));
        if self.boot == now.boot {
            differences.extend(differing("device number", [self, now].map(device)));
            differences.extend(aspect("disk sequence number", |of| of.sequence));
        }
        differences
    }
}

fn differing<T: fmt::Display + PartialEq>(aspect: &str, [was, is]: [T; 2]) -> Option<String> {
    (was != is).then(|| format!("{aspect} was {was} and is {is}"))
}

impl DeviceIdentity {
    fn of(file: &File) -> io::Result<Self> {
        let sysfs = probe::sysfs(file)?;
        let read = |of: &str| {
            let text = fs::read_to_string(sysfs.join(of)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let partition = read("partition");
        let up = if partition.is_some() { "../" } else { "" };
        let names = ["wwid", "device/wwid", "dm/uuid", "serial", "device/serial", "loop/backing_file"];
        Ok(Self {
            name: names.iter().find_map(|name| read(&format!("{up}{name}"))),
            sequence: read(&format!("{up}diskseq")),
            partition,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ImageIdentity {
        ImageIdentity {
            boot: "a".into(),
            kind: ImageKind::File,
            size: 4096,
            device: 0x803,
            inode: 12,
            modified: 1_500_000_000_000_000_001,
            hardware: None,
        }
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        let was = file();
        let now = ImageIdentity { size: 8192, inode: 13, modified: 1_500_000_001_000_000_001, ..file() };
        let expected = [
            "inode was 12 and is 13",
            "size was 4096 bytes and is 8192 bytes",
            "modification time was 1500000000.000000001 and is 1500000001.000000001",
        ];
        assert_eq!(was.differences(&now), expected);
        assert!(was.differences(&file()).is_empty());
        assert_eq!(was.replacements(&now), ["inode was 12 and is 13"]);
    }

    #[test]
    fn numbers_that_a_boot_gives_anew_are_compared_within_one_boot_only() {
        let now = ImageIdentity { device: 0x804, ..file() };
        assert_eq!(file().differences(&now), ["device number was 8:3 and is 8:4"]);
        assert!(file().differences(&ImageIdentity { boot: "b".into(), ..now }).is_empty());
    }

    #[test]
    fn a_block_device_is_told_by_its_hardware() {
        let disk = |name: &str| ImageIdentity {
            kind: ImageKind::BlockDevice,
            hardware: Some(DeviceIdentity { name: Some(name.into()), ..DeviceIdentity::default() }),
            ..file()
        };
        assert_eq!(disk("eui.1").differences(&disk("eui.2")), ["hardware was eui.1 and is eui.2"]);
    }
}
