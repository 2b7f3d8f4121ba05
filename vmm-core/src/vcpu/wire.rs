//! Stand-in for `cpr::format` until it is merged.
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};
pub enum SectionKind {
    Vcpu,
    Vm,
    Clock,
}
pub trait Section: Serialize + DeserializeOwned {
    const KIND: SectionKind;
    const VERSION: u16;
    const OLDEST: u16;
}
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KernelBytes<T>(pub T);
impl<T: IntoBytes + Immutable> Serialize for KernelBytes<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(self.0.as_bytes())
    }
}
impl<'de, T: FromBytes> Deserialize<'de> for KernelBytes<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(d)?;
        T::read_from_bytes(bytes).map(Self).map_err(|_| D::Error::custom("length"))
    }
}
