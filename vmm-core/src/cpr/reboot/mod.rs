//! Reboot: state goes to a file, RAM stays where it is, a later process loads both.
//!
//! 1. The file under its name is the old one or the new one, never half of one ([`mod@file`]).
//! 2. A state file is loaded with the RAM it was saved with, unchanged since, and once ([`stamp`]).
//! 3. Until a loader has claimed the guest, the source can take it back.
//!
//! The order: [`file::StateFile::create`] and [`reserve`](file::StateFile::reserve) while the guest runs; it stops;
//! [`stamp::Stamp::renew`] gives the [`stamp::RamStamp`] section; the file is published; the guest is offered. The
//! loader reads the file, [checks](stamp::Stamp::check) its RAM's stamp, loads, and claims.

pub mod file;
pub mod stamp;
