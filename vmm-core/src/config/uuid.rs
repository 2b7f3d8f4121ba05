//! A guest's identity.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;

/// A UUID (RFC 9562), printed as `8-4-4-4-12` hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A random (version 4) UUID from the kernel's generator.
    pub fn random() -> Self {
        let mut bytes = vmm_sys_util::rand::rand_bytes(16);
        bytes.resize(16, 0);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes);
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Self(uuid)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        let mut uuid = [0; 16];
        let dashes = text.len() == 36 && [8, 13, 18, 23].iter().all(|i| text.as_bytes()[*i] == b'-');
        let valid = dashes && digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit);
        for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)).filter(|_| valid) {
            let nibble = |d: u8| (d as char).to_digit(16).unwrap_or(0) as u8;
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        valid.then_some(Self(uuid)).ok_or_else(|| ConfigError::Value {
            key: "uuid".into(),
            value: text.into(),
            expected: "8-4-4-4-12 hexadecimal digits".into(),
        })
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_round_trips_and_a_bad_one_is_refused() {
        let uuid = Uuid::random();
        assert_eq!(uuid.to_string().parse::<Uuid>().unwrap(), uuid);
        for text in ["", "00000000-0000-0000-0000-00000000000g", "000000000000-0000-0000-000000000000"] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }
}
