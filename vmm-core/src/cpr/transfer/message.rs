//! The messages of a transfer, in the order in which they cross.
//!
//! ```text
//! source                         target
//!   Hello          ─────────▶             who, which protocol, what this build writes
//!                  ◀─────────   Welcome   what this build reads
//!   Descriptors …  ─────────▶             named descriptors, in batches
//!   Machine        ─────────▶             the configuration: everything slow is built from it
//!                  ◀─────────   Ready
//!   Descriptors …  ─────────▶             exec only: the monitor with its clients,
//!   Passengers     ─────────▶             and how the exec has gone so far
//!   (the guest stops)
//!   State          ─────────▶             the ownership word says OFFERED by now
//!                  ◀─────────   Running   the word was claimed; the guest has been entered
//! ```
//!
//! `Refused` may come instead of any of the target's answers. No message decides who owns the guest: the ownership
//! word does ([`crate::cpr::ownership`]).

use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::channel::{Channel, ChannelError};
use super::frame::Frame;
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdName;
use crate::cpr::format::Versions;
use crate::cpr::report::PhaseTime;

/// The protocol's version. Both sides must speak the same.
pub const PROTOCOL: u16 = 1;

/// Why a conversation with the peer ended.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The channel broke.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Another message came than the one that was due.
    #[error("message kind {found} came, expected {expected}")]
    Unexpected {
        /// The kind that came.
        found: u16,
        /// The kind that was due.
        expected: &'static str,
    },
    /// A message's payload does not decode.
    #[error("message {kind} does not decode: {why}")]
    Malformed {
        /// Which message.
        kind: &'static str,
        /// What the decoder says.
        why: String,
    },
    /// The peer speaks another version.
    #[error("the peer ({build}) speaks version {found} of the protocol; this build speaks {PROTOCOL}")]
    Version {
        /// The peer's build.
        build: String,
        /// Its version.
        found: u16,
    },
    /// The peer refused.
    #[error("{0}")]
    Refused(String),
}

/// A message: its number on the wire and its name for people.
pub trait Message: Serialize + DeserializeOwned {
    /// The frame's kind.
    const KIND: u16;
    /// Its name in errors.
    const NAME: &'static str;
}

macro_rules! messages {
    ($($(#[$doc:meta])* $kind:literal $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Serialize, Deserialize)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
            impl Message for $name {
                const KIND: u16 = $kind;
                const NAME: &'static str = stringify!($name);
            }
        )*
    };
}

messages! {
    /// The first message; its first two fields never change, so that versions can always be told apart.
    1 Hello {
        /// [`PROTOCOL`] of the source.
        protocol: u16,
        /// The source's build, for people.
        build: String,
        /// Transfer, or the probe of an exec.
        mode: Mode,
        /// The guest's name.
        guest_name: String,
        /// The guest's identity.
        guest_uuid: Uuid,
        /// What the source can write.
        versions: Versions,
        /// Whether the target is only asked whether it could.
        probe: bool,
        /// Whether state comes over a second socket (the main channel).
        separate_main: bool,
    }
    /// The target's answer to [`Hello`].
    2 Welcome {
        /// [`PROTOCOL`] of the target.
        protocol: u16,
        /// The target's build, for people.
        build: String,
        /// What the target can read.
        versions: Versions,
    }
    /// Descriptors ride on this message, in the order of their names.
    3 Descriptors {
        /// The names.
        names: Vec<FdName>,
    }
    /// What the guest is made of; ends the descriptors.
    4 Machine {
        /// Sections, in the format of saved state.
        state: Vec<u8>,
    }
    /// The target has built everything and waits for the state.
    5 Ready {}
    /// The guest's state, taken after its stop.
    6 State {
        /// Sections, in the format of saved state.
        state: Vec<u8>,
        /// `CLOCK_MONOTONIC` when the last vCPU had left the guest, in ns.
        stopped_ns: u64,
        /// The source's steps so far.
        phases: Vec<PhaseTime>,
    }
    /// The target has claimed and entered the guest.
    7 Running {
        /// `CLOCK_MONOTONIC` when the first vCPU entered, in ns; the same clock on both sides.
        entered_ns: u64,
        /// The steps of loading in the target.
        phases: Vec<PhaseTime>,
    }
    /// The target cannot take the guest.
    8 Refused {
        /// Why.
        reason: String,
        /// What is in the way.
        blockers: Vec<Blocker>,
    }
    /// What is not the machine's and boards at the last moment; ends its descriptors.
    9 Passengers {
        /// Sections, in the format of saved state.
        state: Vec<u8>,
    }
}

/// Sends a message without descriptors.
pub fn send<M: Message>(channel: &mut Channel, message: &M, deadline: Instant) -> Result<(), ProtocolError> {
    send_with_fds(channel, message, &[], deadline)
}

/// Sends a message with descriptors.
pub fn send_with_fds<M: Message>(
    channel: &mut Channel,
    message: &M,
    fds: &[std::os::fd::RawFd],
    deadline: Instant,
) -> Result<(), ProtocolError> {
    let payload = postcard::to_stdvec(message)
        .map_err(|e| ProtocolError::Malformed { kind: M::NAME, why: e.to_string() })?;
    Ok(channel.send(M::KIND, &payload, fds, deadline)?)
}

/// Decodes a frame that must be this message. A refusal becomes [`ProtocolError::Refused`].
pub fn decode<M: Message>(frame: &Frame) -> Result<M, ProtocolError> {
    if frame.kind == Refused::KIND && M::KIND != Refused::KIND {
        let refused: Refused = decode(frame)?;
        let blockers = refused.blockers.iter().map(|blocker| format!("; {blocker}"));
        return Err(ProtocolError::Refused(refused.reason + &blockers.collect::<String>()));
    }
    if frame.kind != M::KIND {
        return Err(ProtocolError::Unexpected { found: frame.kind, expected: M::NAME });
    }
    let malformed = |why: String| ProtocolError::Malformed { kind: M::NAME, why };
    match postcard::take_from_bytes(&frame.payload) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// Receives a message that must be this one, without descriptors.
pub fn receive<M: Message>(channel: &mut Channel, deadline: Instant) -> Result<M, ProtocolError> {
    let frame = channel.receive(deadline)?;
    if !frame.fds.is_empty() {
        return Err(ProtocolError::Malformed { kind: M::NAME, why: "it carries descriptors".into() });
    }
    decode(&frame)
}

/// The protocol version and build of a [`Hello`] or [`Welcome`], readable whatever version the rest has.
pub fn peek_version(frame: &Frame) -> Option<(u16, String)> {
    let (version, _) = postcard::take_from_bytes::<(u16, String)>(&frame.payload).ok()?;
    matches!(frame.kind, Hello::KIND | Welcome::KIND).then_some(version)
}
