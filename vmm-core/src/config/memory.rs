//! RAM: how much, and what it is made of.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ByteSize, ConfigError};

/// RAM: how much, and what it is made of. On the command line: `size=1G,backing=memfd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemoryConfig {
    /// Bytes of RAM, a multiple of the backing's page size.
    pub size: ByteSize,
    /// What the RAM is made of.
    #[serde(default)]
    pub backing: Backing,
}

/// What RAM is made of. All kinds are shared mappings of a descriptor: private memory could not be handed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "type")]
pub enum Backing {
    /// An anonymous shared-memory file, sealed against resizing.
    #[default]
    Memfd,
    /// An anonymous file of huge pages.
    Hugetlb {
        /// The size of a page.
        #[serde(rename = "page-size")]
        page_size: HugePageSize,
    },
    /// A file, mapped shared (`/dev/shm`, hugetlbfs, a DAX file system).
    File {
        /// The file; made if it is not there.
        path: PathBuf,
    },
    /// A device-DAX character device.
    Dax {
        /// `/dev/daxX.Y`.
        path: PathBuf,
        /// Where the RAM begins in it, a multiple of its alignment; others may have the rest. Without, all of it is this guest's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<ByteSize>,
        /// Whether it is persistent memory, whose contents outlive a reset of the host, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pmem: bool,
    },
}

/// The sizes of huge pages that x86-64 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePageSize {
    /// 2 MiB.
    #[serde(rename = "2M")]
    Size2M,
    /// 1 GiB.
    #[serde(rename = "1G")]
    Size1G,
}

impl HugePageSize {
    /// The size of one page in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Size2M => 2 << 20,
            Self::Size1G => 1 << 30,
        }
    }
}

impl Backing {
    /// The path that is opened for it, if it has one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::File { path } | Self::Dax { path, .. } => Some(path),
            Self::Memfd | Self::Hugetlb { .. } => None,
        }
    }

    /// Where the RAM begins in a DAX device that others may have the rest of.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Dax { offset, .. } => offset.map(|offset| offset.0),
            Self::Memfd | Self::Hugetlb { .. } | Self::File { .. } => None,
        }
    }
}

/// A switch as QEMU has it.
pub(super) fn on_or_off(value: &str) -> Option<bool> {
    match value {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

impl MemoryConfig {
    /// Checks size and offset against what the backing can be made of.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let page = match &self.backing {
            Backing::Hugetlb { page_size } => page_size.bytes(),
            Backing::Dax { .. } => 2 << 20,
            Backing::Memfd | Backing::File { .. } => 4096,
        };
        if self.size.0 < 1 << 20 || self.size.0 > 1 << 44 || !self.size.0.is_multiple_of(page) {
            return Err(ConfigError::Value {
                key: "memory.size".into(),
                value: self.size.to_string(),
                expected: format!("1M to 16T, a multiple of {}", ByteSize(page)),
            });
        }
        // The device's alignment, which may be more, is found when it is opened.
        match self.backing {
            Backing::Dax { offset: Some(offset), .. }
                if offset.0 > 1 << 44 || !offset.0.is_multiple_of(4096) =>
            {
                Err(ConfigError::Value {
                    key: "memory.backing.offset".into(),
                    value: offset.to_string(),
                    expected: "0 to 16T, a multiple of the device's alignment".into(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for MemoryConfig {
    type Err = ConfigError;

    /// Reads `size=…[,backing=memfd|hugetlb|file|dax][,page-size=2M|1G][,path=…][,offset=…][,pmem=on|off]`. A path may not hold a comma.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |expected: &str| ConfigError::Value {
            key: "memory".into(),
            value: text.into(),
            expected: expected.into(),
        };
        let (mut size, mut backing, mut page_size, mut path) = (None, "memfd", None, None);
        let (mut offset, mut pmem) = (None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| refused("KEY=VALUE[,KEY=VALUE…]"))?;
            match key {
                "size" => size = Some(value.parse()?),
                "backing" => backing = value,
                "page-size" => {
                    page_size = Some(match value {
                        "2M" => HugePageSize::Size2M,
                        "1G" => HugePageSize::Size1G,
                        _ => return Err(refused("page-size=2M or page-size=1G")),
                    });
                }
                "offset" => offset = Some(value.parse()?),
                "path" => path = Some(PathBuf::from(value)),
                "pmem" => pmem = Some(on_or_off(value).ok_or_else(|| refused("pmem=on or pmem=off"))?),
                _ => return Err(refused("the keys size, backing, page-size, path, offset and pmem")),
            }
        }
        let backing = match (backing, page_size, path, offset, pmem) {
            ("memfd", None, None, None, None) => Backing::Memfd,
            ("hugetlb", page_size, None, None, None) => {
                Backing::Hugetlb { page_size: page_size.unwrap_or(HugePageSize::Size2M) }
            }
            ("file", None, Some(path), None, None) => Backing::File { path },
            ("dax", None, Some(path), offset, pmem) => {
                Backing::Dax { path, offset, pmem: pmem.unwrap_or(false) }
            }
            _ => {
                return Err(refused(
                    "backing=memfd, backing=hugetlb[,page-size=…], backing=file,path=… or backing=dax,path=…[,offset=…][,pmem=on]",
                ));
            }
        };
        Ok(Self { size: size.ok_or_else(|| refused("size=…"))?, backing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_form_is_read() {
        let memory: MemoryConfig = "size=64M,backing=file,path=/dev/shm/a".parse().unwrap();
        assert_eq!(memory.size, ByteSize(64 << 20));
        assert_eq!(memory.backing, Backing::File { path: "/dev/shm/a".into() });
        let memory: MemoryConfig = "size=64M,backing=dax,path=/dev/dax0.0,pmem=on".parse().unwrap();
        assert_eq!(memory.backing, Backing::Dax { path: "/dev/dax0.0".into(), offset: None, pmem: true });
        let memory: MemoryConfig = "size=64M,backing=dax,path=/dev/dax0.0,offset=0".parse().unwrap();
        let backing = Backing::Dax { path: "/dev/dax0.0".into(), offset: Some(ByteSize(0)), pmem: false };
        assert_eq!(memory.backing, backing);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for text in [
            "size=1G,backing=private",
            "backing=memfd",
            "size=1G,backing=file",
            "size=1G,path=/x",
            "1G",
            "size=1G,pmem=on",
            "size=1G,backing=file,path=/x,offset=2M",
        ] {
            assert!(text.parse::<MemoryConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_that_is_no_multiple_of_the_page_is_refused() {
        let memory: MemoryConfig = "size=3M,backing=hugetlb".parse().unwrap();
        assert!(memory.validate().unwrap_err().to_string().contains("2M"));
    }

    #[test]
    fn an_offset_that_no_device_can_have_is_refused() {
        for (offset, valid) in [("2M", true), ("6G", true), ("1000", false), ("17T", false)] {
            let text = format!("size=2M,backing=dax,path=/x,offset={offset}");
            let memory: MemoryConfig = text.parse().unwrap();
            assert_eq!(memory.validate().is_ok(), valid, "{offset}");
        }
    }
}
