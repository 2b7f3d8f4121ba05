//! The bytes of saved state. Knows nothing of KVM.
/// Stub.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct FormatError;
/// Stub.
#[derive(Debug)]
pub struct StateReader;
/// Stub.
#[derive(Debug)]
pub struct StateWriter;
