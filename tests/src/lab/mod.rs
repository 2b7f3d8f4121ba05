//! The lab: a QEMU machine under TCG is the host, so that Linux guests are handed over where there is no hardware
//! virtualization.
//!
//! 1. A scenario is one TOML file ([`scenario`]): what the host is made of, what runs on it, what must be seen.
//! 2. Outside, [`host`] starts QEMU on an initial RAM disk that holds all that is needed ([`image`], [`cpio`],
//!    [`modules`]) and the guest's [`disks`], keeps the console and gives up at the scenario's bound.
//! 3. Inside, [`init`] is the host's first process and [`inside`] takes the guest through the scenario's steps ([`steps`]):
//!    [`owner`] runs the two commands, [`console`] is the client of the guest's serial socket,
//!    [`net`] of its network, [`vsock`] of its sockets; [`delay`] makes disks slow.
//! 4. What was seen is one [`report`]; [`judge`] says what in it is wrong.
//! 5. Unit tests that need such a host run on it too ([`units`]).
//! 6. A scenario without a host runs the guest on QEMU itself ([`alone`]): it tries the guest program, not the product.

pub mod alone;
pub mod console;
pub mod cpio;
pub mod delay;
pub mod disks;
pub mod host;
pub mod image;
pub mod init;
pub mod inside;
pub mod judge;
pub mod modules;
pub mod net;
pub mod owner;
pub mod qemu;
pub mod report;
pub mod scenario;
pub mod steps;
pub mod units;
pub mod vsock;
