//! The lab: a QEMU machine under TCG is the host, so that Linux guests are handed over where there is no hardware
//! virtualization.
//!
//! 1. A scenario is one TOML file ([`scenario`]): what the host is made of, what runs on it, what must be seen.
//! 2. Outside, [`host`] starts QEMU on an initial RAM disk that holds all that is needed ([`image`], [`cpio`],
//!    [`modules`]) and the guest's [`disks`], keeps the console and gives up at the scenario's bound.
//! 3. Inside, [`init`] is the host's first process and [`inside`] takes the guest through the scenario's steps ([`steps`]):
//!    [`owner`] runs the two [`commands`], [`console`] is the client of the guest's serial socket,
//!    [`net`] of its network, [`vsock`] of its sockets; [`delay`] makes disks slow, [`trouble`] what
//!    handovers are refused for, [`faults`] targets that fail.
//! 4. What was seen is one [`report`]; [`judge`] says what in it is wrong.
//! 5. Unit tests that need such a host run on it too ([`units`]).
//! 6. A guest may have a [`root`] file system with a userland of its own; [`getty`] is the client of its console.
//! 7. Devices of the host's may be [`assigned`] to the guest: [`vfio`] binds them and gives them back, [`host_log`] is what
//!    the host's kernel says of them meanwhile, [`aer`] has one fail, [`mediated`] one is made of none.
//! 8. Two guests on a host go through the same steps at the same time ([`meeting`]).
//! 9. Of a guest that falls silent [`autopsy`] tells where its vCPUs stand.
//! 10. A host may go into other kernels ([`kexec`]), with the guest's RAM in memory that outlives them ([`dax`]); [`stale`] is
//!     what must not be loaded there.
//!     A [`peer`] outside holds a connection with the guest meanwhile.
//! 11. With [`outage`] in place of steps a host goes into other kernels with more and more guests, a [`herd`] of small ones.
//! 12. A host may have a [`root`] of its own with systemd, under which the guests are units, and an [`operator`].
//! 13. A scenario without a host runs the guest on QEMU itself ([`alone`]): it tries the guest program, not the product.

pub mod aer;
pub mod alone;
pub mod assigned;
pub mod autopsy;
pub mod client;
pub mod commands;
pub mod console;
pub mod cpio;
pub mod dax;
pub mod delay;
pub mod disks;
pub mod faults;
pub mod getty;
pub mod herd;
pub mod host;
pub mod host_log;
pub mod image;
pub mod init;
pub mod inside;
pub mod judge;
pub mod kexec;
pub mod mediated;
pub mod meeting;
pub mod misplaced;
pub mod modules;
pub mod net;
pub mod operator;
pub mod outage;
pub mod owner;
pub mod paths;
pub mod peer;
pub mod qemu;
pub mod report;
pub mod root;
pub mod scenario;
pub mod stale;
pub mod steps;
pub mod threads;
pub mod trouble;
pub mod units;
pub mod vfio;
pub mod vsock;
pub mod watch;
