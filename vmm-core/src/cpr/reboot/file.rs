//! stub
#![allow(missing_docs)]
use std::path::Path;
pub type FileError = std::io::Error;
pub struct StateFile(std::path::PathBuf);
impl StateFile { pub fn reserve(p: &Path, _: u64) -> Result<Self, FileError> { Ok(Self(p.into())) } pub fn publish(self, b: &[u8]) -> Result<(), FileError> { std::fs::write(self.0, b) } }
pub fn read(p: &Path) -> Result<Vec<u8>, FileError> { std::fs::read(p) }
pub fn read_any(p: &Path) -> Result<Vec<u8>, FileError> { std::fs::read(p) }
pub fn check_writable(_: &Path) -> Result<(), FileError> { Ok(()) }
