//! A guest's peer outside its host: a connection with it outlives the host's kernel.
//!
//! 1. Outside, a tap in a network namespace of its own is the wire to the host's card ([`prepare`]).
//! 2. Inside, a bridge has that card and the guest's tap ([`bridge`]). Each next kernel makes it anew, before the guest is loaded.
//! 3. The peer connects when the guest is up, and pings it; what it saw is taken at the end of each of the host's steps ([`Peer`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_init::link;
use serde::{Deserialize, Serialize};

use super::net::{self, HOST_MAC, NetReport, Network, TAP};
use super::scenario::{Net, Step};

/// What the line begins with by which the host says that a step is done.
pub const STEP_MARK: &str = "@step ";
const BRIDGE: &str = "br0";
/// The peer's processor is not emulated: pinged as often as by its host a guest would do nothing but answer.
const PING_EVERY: Duration = Duration::from_millis(20);

/// What the peer saw in one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// The step, as the scenario has it.
    pub step: String,
    /// What was seen.
    pub net: NetReport,
}

/// Enters a network namespace and makes the wire in it; gives what the host's QEMU, started by the calling thread, is told of it.
pub fn prepare() -> Result<Vec<String>> {
    net::prepare(&Net::default())?;
    let backend = format!("tap,id=wire,ifname={TAP},script=no,downscript=no");
    let card = format!("virtio-net-pci,netdev=wire,mac={HOST_MAC}");
    Ok(vec!["-netdev".into(), backend, "-device".into(), card])
}

/// Makes the guest's tap, and a bridge of it and the host's card.
pub fn bridge(net: &Net) -> Result<()> {
    let card = net::own_card()?;
    net::tap(TAP, net.queues)?;
    link::make_bridge(BRIDGE).with_context(|| format!("making the bridge {BRIDGE}"))?;
    for port in [card.as_str(), TAP] {
        link::set_up(port).with_context(|| format!("setting up {port}"))?;
        link::add_to_bridge(BRIDGE, port).with_context(|| format!("adding {port} to {BRIDGE}"))?;
    }
    link::set_up(BRIDGE).with_context(|| format!("setting up {BRIDGE}"))
}

/// The peer.
pub struct Peer(Arc<Mutex<Option<Network>>>);

impl Peer {
    /// Connects as soon as the guest is up, in the calling thread's network namespace.
    pub fn start(deadline: Instant) -> Self {
        let peer = Self(Arc::default());
        let connected = Arc::clone(&peer.0);
        thread::spawn(move || {
            while Instant::now() < deadline {
                if let Ok(network) = Network::start(PING_EVERY) {
                    *connected.lock().unwrap_or_else(PoisonError::into_inner) = Some(network);
                    return;
                }
            }
        });
        peer
    }

    /// What was seen in a step that is done, if the peer was connected by then. The last one ends the guest, and its connections.
    pub fn take(&self, step: &str) -> Option<PeerReport> {
        let network = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let net = network.as_ref().filter(|_| step != Step::PowerOff.to_string())?.take();
        Some(PeerReport { step: step.into(), net })
    }
}
