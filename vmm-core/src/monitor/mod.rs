//! The monitor: a QMP (QEMU Machine Protocol) server, and a client for it.
//!
//! 1. No client can block the machine: sockets are non-blocking, every buffer is bounded, who does not read is dropped.
//! 2. Malformed input is answered with an error and survived; only what breaks a bound costs the connection.
//! 3. Only root and our own user may speak to it.
//! 4. Commands, arguments, errors and events carry QEMU's names and shapes; what QMP has no word for begins with `x-cpr-`.
//! 5. No command blocks long: [`Control::migrate`] starts a handover and returns; events say how it goes.
//!
//! `types` and [`control`] are what the machine sees; `framing`, `args` and `commands` turn bytes into calls; [`server`]
//! owns the sockets; [`events`] carries news from any thread; [`client`] is the other end; [`paths`] says where sockets are.
//!
//! The protocol is QEMU's `docs/interop/qmp-spec`.

mod args;
mod channels;
pub mod client;
mod commands;
pub mod control;
pub mod events;
mod framing;
pub mod paths;
pub mod server;
mod types;

pub use self::channels::{Address, Channels, Destination, Incoming};
pub use self::control::{CheckRequest, CommandError, Control, ErrorClass};
pub use self::types::{
    CpuInfoFast, HandoverReport, MigrateCapabilities, MigrateParameters, MigrateParametersUpdate,
    MigrationInfo, MigrationStatus, PhaseTime, RunState,
};
