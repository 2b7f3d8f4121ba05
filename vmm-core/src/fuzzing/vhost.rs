//! What stands for the kernel behind a vhost device.
//!
//! 1. It knows guest memory by the regions that it was told, and rings by addresses in this process. One that is in no
//!    region is a panic: it was ours to check.
//! 2. From its start to its stop it serves each ring on a thread of its own: what comes from the guest is taken, and each
//!    notification of the other ring brings one message. After the stop it touches nothing any more.
//! 3. A ring that is broken is told of, and left alone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::devices::virtio::vhost::{Kernel, RINGS, Region, Regions, RingAddress};

/// Bytes of a message to the guest.
pub(super) const MESSAGE: u32 = 44;
/// Event indices (`VIRTIO_RING_F_EVENT_IDX`).
const EVENT_IDX: u64 = 1 << 29;
/// What a vhost device has of rings, merged buffers (vhost-net) and bounds of messages (vhost-vsock).
const FEATURES: u64 = 1 << 28 | EVENT_IDX | 1 << 32 | 1 << 15 | 1 << 1;

/// The kernel behind one vhost device.
#[derive(Default)]
pub(crate) struct Double {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    owned: bool,
    features: u64,
    regions: Vec<Region>,
    rings: [Ring; RINGS],
}

#[derive(Default)]
struct Ring {
    size: u32,
    address: RingAddress,
    base: u32,
    kick: Option<OwnedFd>,
    error: Option<OwnedFd>,
    call: Arc<Mutex<Option<OwnedFd>>>,
    serving: Option<Serving>,
}

/// A ring that is served: how to end it, and what then tells how far it came.
struct Serving {
    quit: EventFd,
    thread: JoinHandle<()>,
    next: Arc<AtomicU32>,
}

impl Double {
    fn ring<T>(&self, ring: u32, change: impl FnOnce(&mut Ring) -> T) -> nix::Result<T> {
        let mut told = self.told.lock().unwrap();
        assert!(told.owned, "a ring is set before there is an owner");
        told.rings.get_mut(ring as usize).map(change).ok_or(Errno::ENOBUFS)
    }

    fn serve(&self, ring: u32, on: bool) {
        let mut told = self.told.lock().unwrap();
        if on {
            told.start(ring as usize);
        } else {
            told.rings[ring as usize].stop();
        }
    }
}

impl Told {
    /// The guest address of so many bytes of this process's, which must be in one region.
    fn guest(&self, host: u64, length: u64) -> u64 {
        let within = |region: &&Region| {
            host >= region.host
                && host.checked_add(length).is_some_and(|end| end <= region.host + region.size)
        };
        let region = self.regions.iter().find(within);
        let region =
            region.unwrap_or_else(|| panic!("{length} bytes at {host:#x} are in no region that was told"));
        host - region.host + region.guest
    }

    fn memory(&self) -> GuestMemoryMmap {
        let region = |region: &Region| {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let host = region.host as *mut u8;
            // SAFETY: it is mapped for as long as rings are served, as was told.
            let piece = unsafe { MmapRegion::build_raw(host, region.size as usize, prot, flags) }.unwrap();
            GuestRegionMmap::new(piece, GuestAddress(region.guest)).unwrap()
        };
        GuestMemoryMmap::from_regions(self.regions.iter().map(region).collect()).unwrap()
    }

    fn start(&mut self, index: usize) {
        let (ring, memory) = (&self.rings[index], self.memory());
        assert!(ring.serving.is_none(), "ring {index} is served already");
        let (size, at) = (u64::from(ring.size), ring.address);
        let used_ring = self.guest(at.used, 6 + 8 * size);
        let next_used = memory.read_obj::<u16>(GuestAddress(used_ring + 2)).unwrap();
        let queue = Queue::try_from(QueueState {
            max_size: ring.size as u16,
            size: ring.size as u16,
            next_avail: ring.base as u16,
            next_used,
            event_idx_enabled: self.features & EVENT_IDX != 0,
            ready: true,
            desc_table: self.guest(at.descriptors, 16 * size),
            avail_ring: self.guest(at.available, 6 + 2 * size),
            used_ring,
        });
        let quit = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
        let next = Arc::new(AtomicU32::new(ring.base));
        let clone = |fd: &Option<OwnedFd>| fd.as_ref().unwrap().try_clone().unwrap();
        let worker = Worker {
            index,
            queue: queue.unwrap(),
            memory,
            kick: clone(&ring.kick),
            error: clone(&ring.error),
            call: Arc::clone(&ring.call),
            quit: quit.as_fd().try_clone_to_owned().unwrap(),
            next: Arc::clone(&next),
        };
        let thread = std::thread::spawn(move || worker.run());
        self.rings[index].serving = Some(Serving { quit, thread, next });
    }
}

impl Ring {
    fn stop(&mut self) {
        let Some(Serving { quit, thread, next }) = self.serving.take() else { return };
        quit.write(1).unwrap();
        thread.join().unwrap();
        self.base = next.load(Ordering::SeqCst);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread of a ring.
struct Worker {
    index: usize,
    queue: Queue,
    memory: GuestMemoryMmap,
    kick: OwnedFd,
    error: OwnedFd,
    call: Arc<Mutex<Option<OwnedFd>>>,
    quit: OwnedFd,
    next: Arc<AtomicU32>,
}

impl Worker {
    fn run(mut self) {
        let mut broken = false;
        loop {
            let mut fds = [&self.quit, &self.kick].map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => panic!("{error}"),
            }
            if read(&self.quit) {
                return;
            }
            if read(&self.kick) && !broken && self.look().is_err() {
                broken = true;
                signal(&self.error);
            }
            self.next.store(self.queue.next_avail().into(), Ordering::SeqCst);
        }
    }

    fn look(&mut self) -> Result<(), virtio_queue::Error> {
        let (most, mut some) = (if self.index == 0 { 1 } else { self.queue.size() }, false);
        for _ in 0..most {
            let Some(chain) = self.queue.iter(&self.memory)?.next() else { break };
            let (head, mut written) = (chain.head_index(), 0);
            for buffer in chain.writable().filter(|_| self.index == 0) {
                let length = buffer.len().min(MESSAGE - written);
                if self.memory.write_slice(&vec![0; length as usize], buffer.addr()).is_ok() {
                    written += length;
                }
            }
            self.queue.add_used(&self.memory, head, written)?;
            some = true;
        }
        if self.queue.enable_notification(&self.memory)? && self.index != 0 {
            signal(&self.kick);
        }
        if some
            && self.queue.needs_notification(&self.memory)?
            && let Some(call) = &*self.call.lock().unwrap()
        {
            signal(call);
        }
        Ok(())
    }
}

fn read(event: &OwnedFd) -> bool {
    nix::unistd::read(event, &mut [0; 8]).is_ok()
}

fn signal(event: &OwnedFd) {
    // It can only fail when the counter is full, and then it is signalled.
    let _ = nix::unistd::write(event, &1_u64.to_ne_bytes());
}

fn copy(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().unwrap()
}

impl Kernel for Double {
    fn features(&self) -> nix::Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&self, features: u64) -> nix::Result<()> {
        if features & !FEATURES != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.told.lock().unwrap().features = features;
        Ok(())
    }

    fn set_owner(&self) -> nix::Result<()> {
        let owned = std::mem::replace(&mut self.told.lock().unwrap().owned, true);
        if owned { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn set_memory(&self, regions: &Regions) -> nix::Result<()> {
        self.told.lock().unwrap().regions = regions.list().to_vec();
        Ok(())
    }

    fn set_size(&self, ring: u32, number: u32) -> nix::Result<()> {
        if number == 0 || number > 0xffff || !number.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        self.ring(ring, |ring| ring.size = number)
    }

    fn set_address(&self, address: &RingAddress) -> nix::Result<()> {
        self.ring(address.ring, |ring| ring.address = *address)
    }

    fn set_base(&self, ring: u32, number: u32) -> nix::Result<()> {
        self.ring(ring, |ring| {
            if ring.serving.is_some() || number > 0xffff {
                return Err(Errno::EBUSY);
            }
            ring.base = number;
            Ok(())
        })?
    }

    fn base(&self, ring: u32) -> nix::Result<u32> {
        self.ring(ring, |ring| {
            assert!(ring.serving.is_none(), "a ring is asked how far it came while it is served");
            ring.base
        })
    }

    fn set_kick(&self, ring: u32, fd: BorrowedFd<'_>) -> nix::Result<()> {
        self.ring(ring, |ring| ring.kick = Some(copy(fd)))
    }

    fn set_call(&self, ring: u32, fd: BorrowedFd<'_>) -> nix::Result<()> {
        self.ring(ring, |ring| *ring.call.lock().unwrap() = Some(copy(fd)))
    }

    fn set_error(&self, ring: u32, fd: BorrowedFd<'_>) -> nix::Result<()> {
        self.ring(ring, |ring| ring.error = Some(copy(fd)))
    }

    fn set_tap(&self, ring: u32, tap: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        self.serve(ring, tap.is_some());
        Ok(())
    }

    fn set_guest_cid(&self, _cid: u64) -> nix::Result<()> {
        Ok(())
    }

    fn set_running(&self, running: bool) -> nix::Result<()> {
        (0..RINGS as u32).for_each(|ring| self.serve(ring, running));
        Ok(())
    }
}
