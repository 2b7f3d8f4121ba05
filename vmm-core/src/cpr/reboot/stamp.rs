//! stub
#![allow(missing_docs)]
use crate::cpr::format::*; use crate::cpr::ownership::*; use crate::memory::StampLocation; use crate::config::Uuid;
#[derive(Debug, thiserror::Error)] #[error("stamp")] pub struct StampError;
#[derive(Debug, serde::Serialize, serde::Deserialize)] pub struct RamStamp; 
impl Section for RamStamp { const KIND: SectionKind = SectionKind::RamStamp; const VERSION: u16 = 1; const OLDEST: u16 = 1; }
pub struct Stamp; pub struct Begun;
impl Begun { pub fn section(&self) -> RamStamp { RamStamp } pub fn word(&self) -> &Ownership { todo!() } }
impl Stamp { pub fn open(_: &StampLocation) -> Result<Self, StampError> { Ok(Self) } pub fn begin(&self, _: Uuid, _: u64, _: Option<&Claim>) -> Result<Begun, StampError> { Ok(Begun) }
pub fn check(&self, _: &RamStamp) -> Result<(), StampError> { Ok(()) } pub fn claim(&self, _: &RamStamp) -> Result<Claim, StampError> { Err(StampError) } }
