//! The kernel's structures inside a payload.

use std::fmt;
use std::marker::PhantomData;

use serde::de::Visitor;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::FormatError;

/// A structure of the kernel's, on the wire as its size and its bytes.
///
/// `kvm-bindings` would pad or cut a structure of another size; here it is an error that names both sizes, given by
/// [`get`](Self::get) because serde's errors carry no values through postcard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelBytes<T>(Result<T, usize>);

impl<T> KernelBytes<T> {
    /// Wraps a structure for the wire.
    pub fn new(value: T) -> Self {
        Self(Ok(value))
    }

    /// The structure, or an error where what was read has another size.
    pub fn get(&self) -> Result<&T, FormatError> {
        self.0.as_ref().map_err(|found| FormatError::KernelSize {
            name: std::any::type_name::<T>().rsplit("::").next().unwrap_or_default(),
            found: *found,
            expected: size_of::<T>(),
        })
    }
}

impl<T> From<T> for KernelBytes<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: IntoBytes + Immutable> Serialize for KernelBytes<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.get().map_err(S::Error::custom)?.as_bytes())
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for KernelBytes<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BytesVisitor(PhantomData))
    }
}

struct BytesVisitor<T>(PhantomData<T>);

impl<T: FromBytes> Visitor<'_> for BytesVisitor<T> {
    type Value = KernelBytes<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} bytes of a kernel structure", size_of::<T>())
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(KernelBytes(T::read_from_bytes(bytes).map_err(|_| bytes.len())))
    }
}
