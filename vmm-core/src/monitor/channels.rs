//! Where a handover goes, and where one comes from: QEMU's migration URIs and channels.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::Args;
use super::control::CommandError;
use crate::cpr::Mode;
use crate::cpr::reboot::Place;

/// Where state goes to or comes from. It is printed as [`from_uri`](Address::from_uri) reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A UNIX socket (`unix:PATH`).
    Unix(PathBuf),
    /// A file (`file:PATH`).
    File(PathBuf),
    /// Memory that the host's next kernel finds (`luo:NAME`); without a name that of the guest.
    LiveUpdate(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::LiveUpdate(name) => write!(f, "luo:{name}"),
        }
    }
}

impl Address {
    /// Reads a URI: `unix:PATH`, `file:PATH` or `luo:NAME`.
    pub fn from_uri(uri: &str) -> Result<Self, CommandError> {
        match uri.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("luo", name)) => Ok(Self::LiveUpdate(name.into())),
            _ => Err(CommandError::generic(format!(
                "'{uri}' is no address for a handover; expected unix:PATH, file:PATH or luo:NAME"
            ))),
        }
    }

    /// As QMP writes it (`MigrationAddress`).
    pub fn to_json(&self) -> Value {
        match self {
            Self::Unix(path) => json!({"transport": "socket", "type": "unix", "path": path}),
            Self::File(path) => json!({"transport": "file", "filename": path, "offset": 0}),
            Self::LiveUpdate(name) => json!({"transport": "x-luo", "name": name}),
        }
    }

    fn from_args(mut args: Args) -> Result<Self, CommandError> {
        let transport = args.string("transport")?;
        let address = match transport.as_str() {
            "socket" => {
                let kind = args.string("type")?;
                if kind != "unix" {
                    return Err(CommandError::value("type", &kind, "unix"));
                }
                Self::Unix(args.string("path")?.into())
            }
            "file" => {
                if let Some(offset) = args.optional_u64("offset")?
                    && offset != 0
                {
                    return Err(CommandError::value("offset", &offset.to_string(), "0"));
                }
                Self::File(args.string("filename")?.into())
            }
            "x-luo" => Self::LiveUpdate(args.string("name")?),
            _ => return Err(CommandError::value("transport", &transport, "socket, file or x-luo")),
        };
        args.finish()?;
        Ok(address)
    }
}

/// The channels that a command named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Channels {
    /// Carries the state.
    pub main: Option<Address>,
    /// Carries the descriptors.
    pub cpr: Option<Address>,
}

/// Where a handover goes, as its mode needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To the process that listens on these sockets; they may be one and the same.
    Transfer {
        /// For descriptors.
        cpr: PathBuf,
        /// For state.
        main: PathBuf,
    },
    /// To this process's next image.
    Exec,
    /// To where a later process finds it.
    Reboot(Place),
}

/// Where a guest comes from (`migrate-incoming`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// From a process that will connect to these sockets; they may be one and the same.
    Unix {
        /// For descriptors.
        cpr: PathBuf,
        /// For state.
        main: PathBuf,
    },
    /// From where it was saved to.
    Saved(Place),
}

impl Channels {
    /// Takes `uri` or `channels` out of a command's arguments; both together are refused.
    pub(super) fn from_args(args: &mut Args) -> Result<Self, CommandError> {
        let uri = args.optional_string("uri")?;
        let list = args.optional_list("channels")?;
        let mut channels = Self::default();
        match (uri, list) {
            (Some(_), Some(_)) => {
                return Err(CommandError::generic("'uri' and 'channels' exclude each other; give one"));
            }
            (Some(uri), None) => channels.main = Some(Address::from_uri(&uri)?),
            (None, Some(list)) => {
                for item in list {
                    let mut item = Args::new("channels", item)?;
                    let kind = item.string("channel-type")?;
                    let address = Address::from_args(Args::new("addr", item.value("addr")?)?)?;
                    item.finish()?;
                    let slot = match kind.as_str() {
                        "main" => &mut channels.main,
                        "cpr" => &mut channels.cpr,
                        _ => return Err(CommandError::value("channel-type", &kind, "main or cpr")),
                    };
                    if slot.replace(address).is_some() {
                        return Err(CommandError::generic(format!("channel '{kind}' is there twice")));
                    }
                }
            }
            (None, None) => {}
        }
        Ok(channels)
    }

    /// As QMP writes them (a list of `MigrationChannel`).
    pub fn to_json(&self) -> Value {
        let channel = |kind: &str, address: &Option<Address>| {
            address.as_ref().map(|address| json!({"channel-type": kind, "addr": address.to_json()}))
        };
        [channel("main", &self.main), channel("cpr", &self.cpr)].into_iter().flatten().collect()
    }

    /// Where a handover in `mode` goes.
    pub fn destination(self, mode: Mode) -> Result<Destination, CommandError> {
        let refused = |desc: &str| Err(CommandError::generic(desc));
        match (mode, self.main, self.cpr) {
            (Mode::CprTransfer, _, None) => {
                refused("missing 'cpr' migration channel: cpr-transfer needs one")
            }
            (Mode::CprTransfer, Some(Address::Unix(main)), Some(Address::Unix(cpr))) => {
                Ok(Destination::Transfer { cpr, main })
            }
            (Mode::CprTransfer, None, Some(Address::Unix(cpr))) => {
                Ok(Destination::Transfer { main: cpr.clone(), cpr })
            }
            (Mode::CprTransfer, _, Some(Address::File(_) | Address::LiveUpdate(_))) => {
                refused("bad cpr channel address; must be unix")
            }
            (Mode::CprTransfer, Some(Address::File(_) | Address::LiveUpdate(_)), _) => {
                refused("bad main channel address; must be unix")
            }
            (Mode::CprExec, None, None) => Ok(Destination::Exec),
            (Mode::CprExec, ..) => {
                refused("cpr-exec keeps its state in memory; leave 'uri' and 'channels' out")
            }
            (Mode::CprReboot, Some(Address::File(file)), None) => Ok(Destination::Reboot(Place::File(file))),
            (Mode::CprReboot, Some(Address::LiveUpdate(name)), None) => {
                Ok(Destination::Reboot(Place::LiveUpdate(name)))
            }
            (Mode::CprReboot, _, Some(_)) => refused("cpr-reboot takes no 'cpr' channel"),
            (Mode::CprReboot, ..) => {
                refused("cpr-reboot needs a main channel to a file (file:PATH), or to a live update (luo:)")
            }
        }
    }

    /// Where a guest comes from.
    pub fn incoming(self) -> Result<Incoming, CommandError> {
        match (self.main, self.cpr) {
            (Some(Address::Unix(main)), None) => Ok(Incoming::Unix { cpr: main.clone(), main }),
            (Some(Address::Unix(main)), Some(Address::Unix(cpr))) => Ok(Incoming::Unix { cpr, main }),
            (Some(Address::File(file)), None) => Ok(Incoming::Saved(Place::File(file))),
            (Some(Address::LiveUpdate(name)), None) if !name.is_empty() => {
                Ok(Incoming::Saved(Place::LiveUpdate(name)))
            }
            (None, None) => Err(CommandError::generic("need either 'uri' or 'channels' argument")),
            _ => Err(CommandError::generic(
                "expected a main channel to a file or to luo:NAME, or a main and a cpr channel to UNIX sockets",
            )),
        }
    }
}
