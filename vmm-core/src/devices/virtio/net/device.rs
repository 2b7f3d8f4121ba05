//! The device.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use vm_memory::GuestMemoryMmap;

use super::config::NetConfig;
use super::control::Control;
use super::mac::Mac;
use super::mover::Mover;
use super::state::NetState;
use super::tap::{Tap, offloads};
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::DeviceError;
use crate::devices::virtio::vhost::{Node, Vhost};
use crate::devices::virtio::{ActiveQueue, DeviceKind, Run, VirtioDevice, Worker, read_from};

/// virtio's id of network devices, and PCI's class of Ethernet controllers.
const KIND: DeviceKind = DeviceKind { id: 1, class: 0x02_0000 };
/// Descriptors of a queue for packets, and of the control queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;

/// What the device can do whatever its configuration.
const FEATURES: [u32; 14] = [
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    // With one pair it is not offered.
    VIRTIO_NET_F_MQ,
];

/// A network device.
pub struct Net {
    shared: Arc<Shared>,
    /// The tap was given as descriptors, which only a process that has them can hand on.
    given: bool,
    /// The tap was opened again for a guest that has lived on it before.
    reopened: bool,
    sizes: Vec<u16>,
    pairs: Vec<Mover>,
    control: Worker,
    run: Mutex<Option<Started>>,
}

/// What it was started with.
struct Started {
    memory: Arc<GuestMemoryMmap>,
    features: u64,
}

/// What the device's threads share.
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) tap: Tap,
    mac: Mac,
    features: AtomicU64,
    pairs: AtomicU16,
    announce: AtomicBool,
}

impl Shared {
    fn has(&self, feature: u32) -> bool {
        self.features.load(Ordering::Relaxed) & 1 << feature != 0
    }

    /// Whether packets to the guest may go over several buffers, and whether some may be longer than a frame.
    pub(super) fn receives(&self) -> (bool, bool) {
        let segmented = self.has(VIRTIO_NET_F_GUEST_TSO4) || self.has(VIRTIO_NET_F_GUEST_TSO6);
        (self.has(VIRTIO_NET_F_MRG_RXBUF), segmented)
    }

    /// The guest has announced itself.
    pub(super) fn announced(&self) {
        self.announce.store(false, Ordering::SeqCst);
    }

    /// Has so many pairs used, if there are so many.
    pub(super) fn use_pairs(&self, pairs: u16) -> bool {
        if pairs == 0 || usize::from(pairs) > self.tap.queues().len() {
            return false;
        }
        match self.tap.enable_queues(pairs) {
            Ok(()) => self.pairs.store(pairs, Ordering::SeqCst),
            Err(error) => tracing::warn!("{}: using {pairs} of its queues: {error}", self.id),
        }
        self.pairs.load(Ordering::SeqCst) == pairs
    }
}

impl Net {
    /// A device after reset, on the tap that its configuration names. `again`: for a guest that has lived on it before.
    pub fn open(id: &str, config: &NetConfig, again: bool) -> Result<Self, DeviceError> {
        let tap = match &config.tap {
            Some(name) => Tap::open(name, config.pairs()),
            None => Tap::from_given(&config.fds),
        };
        let tap = tap.map_err(io::Error::other).map_err(DeviceError::io(id, "opening its tap"))?;
        Self::on(id, config, tap, again)
    }

    /// A device after reset, on a tap that was handed over.
    pub fn adopt(id: &str, config: &NetConfig, fds: &mut FdTable) -> Result<Self, DeviceError> {
        Self::on(id, config, Tap::adopt(id, config.pairs(), fds)?, false)
    }

    fn on(id: &str, config: &NetConfig, tap: Tap, reopened: bool) -> Result<Self, DeviceError> {
        Self::with(id, config, tap, reopened, || Vhost::open(id, Node::Net))
    }

    /// With a vhost device of the caller's for each pair, if they are to have one.
    pub(crate) fn with(
        id: &str,
        config: &NetConfig,
        tap: Tap,
        reopened: bool,
        vhost: impl Fn() -> Result<Vhost, DeviceError>,
    ) -> Result<Self, DeviceError> {
        let Some(mac) = config.mac else {
            let expected = "one in every guest that was booted".into();
            return Err(DeviceError::impossible(id)(("no address".into(), expected)));
        };
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            tap,
            mac,
            features: AtomicU64::new(0),
            pairs: AtomicU16::new(1),
            announce: AtomicBool::new(false),
        });
        let pair = |number| Mover::new(&shared, number, config.vhost.then(&vhost).transpose()?);
        let pairs = (0..config.pairs()).map(pair).collect::<Result<Vec<_>, _>>()?;
        let mut sizes = vec![QUEUE_SIZE; 2 * pairs.len()];
        sizes.push(CONTROL_SIZE);
        let control = Worker::spawn(id, Control(Arc::clone(&shared)))?;
        let given = config.tap.is_none();
        Ok(Self { shared, given, reopened, sizes, pairs, control, run: Mutex::default() })
    }

    fn run(&self) -> MutexGuard<'_, Option<Started>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has each pair and the control queue's thread begin with the queues that are theirs, if there are any.
    fn deal(
        &self,
        memory: &Arc<GuestMemoryMmap>,
        features: u64,
        mut queues: Vec<ActiveQueue>,
    ) -> Result<(), DeviceError> {
        // Without several pairs the control queue comes after the first, however many there could be.
        let several = features & 1 << VIRTIO_NET_F_MQ != 0;
        let control = if several { 2 * self.pairs.len() as u16 } else { 2 };
        let mut take = |of: &dyn Fn(u16) -> bool| {
            let queues: Vec<_> = queues.extract_if(.., |queue| of(queue.index)).collect();
            Run { memory: Arc::clone(memory), features, queues }
        };
        let run = take(&|index| index == control);
        if !run.queues.is_empty() {
            self.control.start(run);
        }
        for (number, pair) in self.pairs.iter().enumerate() {
            let run = take(&|index| usize::from(index / 2) == number);
            if !run.queues.is_empty() {
                pair.start(&self.shared, number, run)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        let offered = FEATURES.iter().filter(|bit| **bit != VIRTIO_NET_F_MQ || self.pairs.len() > 1);
        // Of what it can do, only merging buffers is for whoever moves the packets; the rest is for the tap or for us.
        let movers = self.pairs.iter().fold(u64::MAX, |features, pair| features & pair.features());
        let lacking = !movers & 1 << VIRTIO_NET_F_MRG_RXBUF;
        offered.fold(0, |features, bit| features | 1 << bit) & !lacking
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// `mac`, `status`, `max_virtqueue_pairs` (virtio 1.2, 5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 10];
        let announce = if self.shared.announce.load(Ordering::SeqCst) { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        config[..6].copy_from_slice(&self.shared.mac.0);
        config[6..8].copy_from_slice(&((VIRTIO_NET_S_LINK_UP | announce) as u16).to_le_bytes());
        config[8..].copy_from_slice(&(self.pairs.len() as u16).to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        let Run { memory, features, queues } = run;
        self.shared.features.store(features, Ordering::SeqCst);
        // A tap that was deleted meanwhile is no reason to stop the guest: packets are lost, and that is said.
        if let Err(error) = self.shared.tap.set_offloads(offloads(features)) {
            tracing::warn!("{}: {error}", self.shared.id);
        }
        self.shared.use_pairs(self.shared.pairs.load(Ordering::SeqCst));
        let started = self.deal(&memory, features, queues);
        *self.run() = Some(Started { memory, features });
        started
    }

    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        let run = self.run();
        let mut stopped = Vec::new();
        let stops = self.pairs.iter().map(|pair| pair.stop(deadline));
        for result in stops.chain(std::iter::once_with(|| self.control.stop(deadline))) {
            match (result, &*run) {
                (Ok(queues), _) => stopped.extend(queues),
                (Err(error), None) => return Err(error),
                (Err(error), Some(Started { memory, features })) => {
                    // Those that have stopped already go on.
                    self.deal(memory, *features, stopped)?;
                    return Err(error);
                }
            }
        }
        Ok(stopped)
    }

    fn reset(&self) {
        self.shared.announced();
        self.shared.use_pairs(1);
    }

    /// The network may not know where a tap that was opened again is: it is told, by the guest too if its driver can.
    fn resume(&self) {
        if self.shared.announce.load(Ordering::SeqCst)
            && let Err(error) = self.shared.tap.announce(self.shared.mac)
        {
            tracing::warn!("{}: announcing the guest: {error}", self.shared.id);
        }
    }

    fn save(&self, slot: u32, out: &mut StateWriter) -> Result<(), DeviceError> {
        let Shared { mac, pairs, announce, .. } = &*self.shared;
        let (pairs, announce) = (pairs.load(Ordering::SeqCst), announce.load(Ordering::SeqCst));
        Ok(out.put(slot, &NetState { mac: *mac, pairs, announce })?)
    }

    fn load(&self, slot: u32, state: &mut StateReader) -> Result<(), DeviceError> {
        let NetState { mac, pairs, announce } = state.take(slot)?;
        let impossible = DeviceError::impossible(self.id());
        if mac != self.shared.mac {
            return Err(impossible((format!("address {mac}"), self.shared.mac.to_string())));
        }
        if pairs == 0 || usize::from(pairs) > self.pairs.len() {
            let expected = format!("1 to {}", self.pairs.len());
            return Err(impossible((format!("{pairs} pairs of queues"), expected)));
        }
        self.shared.pairs.store(pairs, Ordering::SeqCst);
        self.shared.announce.store(announce || self.reopened, Ordering::SeqCst);
        Ok(())
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        if mode != Mode::CprReboot {
            self.shared.tap.register(self.id(), fds)?;
        }
        Ok(())
    }

    fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        let Shared { id, tap, .. } = &*self.shared;
        let name = tap.name();
        match mode {
            Mode::CprReboot if self.given => {
                let reason = format!(
                    "its tap {name} was given as a descriptor, which cannot be opened again after a reboot; boot the \
                     guest with tap={name}"
                );
                vec![Blocker::new(id, reason)]
            }
            Mode::CprReboot => Vec::new(),
            // It goes along as it is, which is not what anybody wants of a dead one.
            Mode::CprTransfer | Mode::CprExec if tap.is_gone() => {
                let reason = format!("{name} was deleted; a reboot opens another one of that name");
                vec![Blocker::new(format!("{id}.tap"), reason)]
            }
            // One pair's vhost device is as good as the next's.
            Mode::CprTransfer | Mode::CprExec => {
                self.pairs.first().map_or_else(Vec::new, |pair| pair.blockers(mode))
            }
        }
    }
}
