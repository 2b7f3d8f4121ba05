//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{ConfigError, Uuid};

/// An Ethernet address, printed as six pairs of hexadecimal digits with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of a guest's `index`th network device that was given none: always the same, and as good as never
    /// another guest's. It is a locally administered one.
    pub fn derive(guest: Uuid, index: u32) -> Self {
        // FNV-1a, 64 bits. It must never change: the address is the guest's name on its network.
        let bytes = guest.0.into_iter().chain(index.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut mac = [0; 6];
        mac.copy_from_slice(&hash.to_be_bytes()[2..]);
        mac[0] = mac[0] & !0b01 | 0b10;
        Self(mac)
    }

    /// Whether a device may have it: one device's, and not all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = ConfigError;

    /// Reads an address that a device may have.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |pair: &str| {
            let valid = pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(pair, 16).ok().filter(|_| valid)
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(digits).collect();
        let mac = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        mac.filter(|mac| mac.is_unicast()).ok_or_else(|| ConfigError::Value {
            key: "mac".into(),
            value: text.into(),
            expected: "a unicast address, as 52:54:00:12:34:56".into(),
        })
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_round_trips_and_a_bad_one_is_refused() {
        let mac: Mac = "52:54:00:Ab:00:ff".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0, 0xff]));
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:+6",
            "525400123456",
            "52:54:0:1:2:3",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_s_and_nobody_s_address_are_refused() {
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_derived_address_is_locally_administered_and_never_changes() {
        let guest: Uuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(Mac::derive(guest, 0).to_string(), "8a:22:1c:63:94:c5");
        let mut seen = std::collections::HashSet::new();
        for index in 0..1000 {
            let mac = Mac::derive(guest, index);
            assert!(mac.is_unicast() && mac.0[0] & 2 != 0 && seen.insert(mac));
        }
    }
}
