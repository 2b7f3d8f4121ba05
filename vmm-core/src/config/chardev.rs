//! Where the bytes of a character device go.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;

/// Where the bytes of a character device go. Written `null`, `stdio`, `pty`, `file:PATH` or `unix:PATH`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ChardevConfig {
    /// Output is dropped; no input.
    #[default]
    Null,
    /// The process's standard input and output.
    Stdio,
    /// A pseudo-terminal; its path is logged and reported.
    Pty,
    /// Output appended to a file; no input.
    File(PathBuf),
    /// A listening UNIX socket; one client at a time. Without a client, output is dropped.
    Unix(PathBuf),
}

impl fmt::Display for ChardevConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Stdio => f.write_str("stdio"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for ChardevConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "null" => Ok(Self::Null),
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "pty" => Ok(Self::Pty),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(ConfigError::Value {
                key: "serial".into(),
                value: text.into(),
                expected: "null, stdio, pty, file:PATH or unix:PATH".into(),
            }),
        }
    }
}

impl Serialize for ChardevConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChardevConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
