//! The device.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::config::BlockConfig;
use super::engine::{self, Engine};
use super::image::{Backing, Image, ImageError};
use super::queue::{QueueThread, Work};
use super::request::Limits;
use super::state::BlockState;
use crate::cpr::Mode;
use crate::cpr::blockers::Blocker;
use crate::cpr::fds::{FdName, FdTable};
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::DeviceError;
use crate::devices::virtio::{ActiveQueue, DeviceKind, Run, VirtioDevice, read_from};

/// virtio's id of block devices, and PCI's class of mass storage that is none of the others.
const KIND: DeviceKind = DeviceKind { id: 2, class: 0x01_8000 };
/// Descriptors of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// The most data segments in a request: a queue less the header and the status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// For a thread that was told its deadline to answer.
const GRACE: Duration = Duration::from_secs(1);
/// For what was written to reach the disk before a reboot, with the guest stopped.
const SETTLE: Duration = Duration::from_secs(5);

/// A disk.
pub struct Block {
    id: String,
    image: Image,
    /// Whether the image came by its descriptor, and not by its path.
    adopted: bool,
    /// Whether it may be another one than the guest was saved with.
    accept_changed: bool,
    limits: Limits,
    sizes: Vec<u16>,
    queues: Vec<QueueThread>,
    /// The numbers of the queues that are served.
    served: Mutex<Vec<u16>>,
}

impl Block {
    /// A device after reset, on the image that its configuration names.
    pub fn open(id: &str, config: &BlockConfig) -> Result<Self, DeviceError> {
        let image = Image::open(config).map_err(io::Error::other);
        Self::on(id, config, image.map_err(DeviceError::io(id, "opening its image"))?, false)
    }

    /// A device after reset, on an image that was handed over.
    pub fn adopt(id: &str, config: &BlockConfig, fds: &mut FdTable) -> Result<Self, DeviceError> {
        let name = image_name(id);
        let image = Image::adopt(&name, fds.take(&name)?, config)?;
        Self::on(id, config, image, true)
    }

    fn on(id: &str, config: &BlockConfig, image: Image, adopted: bool) -> Result<Self, DeviceError> {
        let engine = |_, backing: &Backing| engine::open(backing, config.aio, QUEUE_SIZE);
        Self::with(id, config, image, adopted, engine)
    }

    /// With an engine of the caller's for each queue.
    fn with(
        id: &str,
        config: &BlockConfig,
        image: Image,
        adopted: bool,
        engine: impl Fn(u16, &Backing) -> io::Result<Box<dyn Engine>>,
    ) -> Result<Self, DeviceError> {
        let queue = |index| {
            let engine = engine(index, image.backing());
            QueueThread::spawn(id, engine.map_err(DeviceError::io(id, "preparing its I/O"))?)
        };
        let queues = (0..config.queues).map(queue).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            id: id.to_owned(),
            limits: Limits::of(&image, config.serial.as_deref()),
            image,
            adopted,
            accept_changed: config.accept_changed,
            sizes: vec![QUEUE_SIZE; queues.len()],
            queues,
            served: Mutex::default(),
        })
    }

    fn served(&self) -> std::sync::MutexGuard<'_, Vec<u16>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration (virtio 1.2, 5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let discard = if self.limits.discard { Limits::MAX_DISCARD_SECTORS } else { 0 };
        let zeroes = if self.limits.write_zeroes { Limits::MAX_ZEROES_SECTORS } else { 0 };
        let aligned = self.limits.block_size / super::SECTOR as u32;
        config[..8].copy_from_slice(&self.limits.sectors.to_le_bytes());
        for (at, value) in [
            (12, SEGMENTS),
            (20, self.limits.block_size),
            (36, discard),
            (40, Limits::MAX_SEGMENTS),
            (44, aligned),
            (48, zeroes),
            (52, Limits::MAX_SEGMENTS),
            // Writing zeroes may unmap.
            (56, 1),
        ] {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        config[34..36].copy_from_slice(&(self.queues.len() as u16).to_le_bytes());
        config
    }
}

fn image_name(id: &str) -> FdName {
    FdName::new(format!("{id}.image"), 0)
}

impl VirtioDevice for Block {
    fn id(&self) -> &str {
        &self.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        let offered = [
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_FLUSH, true),
            (VIRTIO_BLK_F_MQ, self.queues.len() > 1),
            (VIRTIO_BLK_F_RO, self.limits.read_only),
            (VIRTIO_BLK_F_DISCARD, self.limits.discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, self.limits.write_zeroes),
        ];
        offered.into_iter().filter(|(_, there)| *there).fold(0, |features, (bit, _)| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        read_from(&config, offset, data);
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        let limits =
            Limits { write_through: run.features & 1 << VIRTIO_BLK_F_FLUSH == 0, ..self.limits.clone() };
        *self.served() = run.queues.iter().map(|queue| queue.index).collect();
        for queue in run.queues {
            let Some(thread) = self.queues.get(usize::from(queue.index)) else { continue };
            thread.start(Work { queue, memory: run.memory.clone(), limits: limits.clone() });
        }
        Ok(())
    }

    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        let mut served = self.served();
        let threads: Vec<_> =
            served.iter().filter_map(|index| self.queues.get(usize::from(*index))).collect();
        // All at once: a slow disk must not use the deadline up for each queue.
        let answers: Vec<_> = threads.iter().map(|thread| thread.drain(deadline)).collect();
        let mut busy = None;
        for answer in answers {
            let left = deadline.saturating_duration_since(Instant::now()) + GRACE;
            let what = match answer.recv_timeout(left) {
                Ok(Ok(())) => continue,
                Ok(Err(undrained)) => undrained.to_string(),
                Err(_) => "a queue's thread does not answer".to_owned(),
            };
            busy.get_or_insert(what);
        }
        if let Some(what) = busy {
            for thread in &threads {
                thread.go_on();
            }
            return Err(DeviceError::Busy { device: self.id.clone(), what });
        }
        let queues = threads.iter().filter_map(|thread| thread.give_back()).collect();
        served.clear();
        Ok(queues)
    }

    /// Before a reboot what was written reaches the disk: the image is another process's next, or another kernel's.
    fn save(&self, slot: u32, out: &mut StateWriter) -> Result<(), DeviceError> {
        let identity = match out.mode() {
            Mode::CprReboot => self.image.settle(SETTLE),
            Mode::CprTransfer | Mode::CprExec => self.image.identity(),
        };
        let identity = identity.map_err(io::Error::other);
        let identity = identity.map_err(DeviceError::io(&self.id, "taking leave of its image"))?;
        Ok(out.put(slot, &BlockState { identity, block_size: self.limits.block_size })?)
    }

    fn load(&self, slot: u32, state: &mut StateReader) -> Result<(), DeviceError> {
        let BlockState { identity, block_size } = state.take(slot)?;
        if block_size != self.limits.block_size {
            let found = format!("blocks of {block_size} bytes");
            let expected = format!("{}, as the image has now", self.limits.block_size);
            return Err(DeviceError::impossible(&self.id)((found, expected)));
        }
        let same = if self.adopted { self.image.recognize(&identity) } else { self.image.verify(&identity) };
        match same {
            Err(error @ ImageError::Changed { .. }) if self.accept_changed => {
                tracing::warn!("{}: {error}; it is taken all the same", self.id);
                Ok(())
            }
            Err(error @ ImageError::Changed { .. }) => {
                Err(DeviceError::Changed { device: self.id.clone(), what: error.to_string() })
            }
            same => same
                .map_err(io::Error::other)
                .map_err(DeviceError::io(&self.id, "looking whether it is the same image")),
        }
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        if mode != Mode::CprReboot {
            self.image.register(image_name(&self.id), fds)?;
        }
        Ok(())
    }

    /// After a reboot the image is opened by its path.
    fn blockers(&self, mode: Mode) -> Vec<Blocker> {
        let lost = if mode == Mode::CprReboot { self.image.lost() } else { None };
        lost.map(|why| Blocker::new(&self.id, why)).into_iter().collect()
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
