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
    Basis, CpuInfoFast, EarlyInfo, HandoverReport, MigrateCapabilities, MigrateParameters,
    MigrateParametersUpdate, MigrationInfo, MigrationStatus, PhaseTime, RamProgress, RunState, TakenOver,
};

/// Answers what a client sends, first some of it and then the rest.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn answer_all(control: &dyn Control, (first, rest): (&[u8], &[u8])) {
    let (mut framer, mut negotiated) = (framing::Framer::default(), false);
    for bytes in [first, rest] {
        framer = framing::Framer::resume(framer.pending().to_vec(), framer.is_skipping());
        framer.push(bytes);
        while let Some(frame) = framer.next() {
            match frame {
                framing::Frame::Value(request) => {
                    let answer = commands::answer(control, &mut negotiated, request);
                    assert!(answer.get("return").is_some() != answer.get("error").is_some(), "{answer}");
                }
                framing::Frame::Malformed(_) => {}
                framing::Frame::TooLong => return,
            }
        }
    }
}
