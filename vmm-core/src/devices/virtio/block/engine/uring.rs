//! I/O by io_uring(7); what it has no operation for goes to a pool of threads.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::blocking::{self, PUNCH, ZERO};
use super::job::{Job, Pending};
use super::operation::Operation;
use super::threads::Pool;
use super::{Completion, Engine};
use crate::devices::eventfd;
use crate::devices::virtio::block::image::Backing;
use crate::devices::virtio::block::probe::ImageKind;

/// I/O by io_uring(7).
pub struct UringEngine {
    ring: IoUring,
    backing: Backing,
    event: EventFd,
    pool: Pool,
    pending: BTreeMap<u64, Pending>,
    next: u64,
    /// Waiting for room in the ring, with whether to try in a way that can wait.
    backlog: VecDeque<(u64, squeue::Flags)>,
    /// How many requests the ring may hold: the completion queue has room for all.
    depth: usize,
    /// How many it holds.
    held: usize,
    /// Done, and not reaped yet.
    ready: Vec<Completion>,
}

impl UringEngine {
    /// An engine on `backing` for `depth` requests at a time; more wait. An error is the kernel's refusal: ENOSYS or EPERM
    /// where there is no io_uring for this process (`kernel.io_uring_disabled`, seccomp).
    pub fn new(backing: Backing, depth: u16) -> io::Result<Self> {
        let depth = depth.clamp(1, 4096);
        let ring = IoUring::new(u32::from(depth))?;
        let event = eventfd::open()?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let pool = Pool::new(backing.clone(), event.try_clone()?);
        Ok(Self {
            ring,
            backing,
            event,
            pool,
            pending: BTreeMap::new(),
            next: 0,
            backlog: VecDeque::new(),
            depth: depth.into(),
            held: 0,
            ready: Vec::new(),
        })
    }

    /// Moves what waits into the ring, as far as it has room.
    fn fill(&mut self) {
        while self.held < self.depth {
            let Some((id, flags)) = self.backlog.pop_front() else { return };
            let Some(job) = self.pending.get_mut(&id).and_then(|pending| pending.job.as_mut()) else {
                continue;
            };
            let entry = match entry(&self.backing, job) {
                Ok(Some(entry)) => entry.flags(flags).user_data(id),
                Ok(None) => {
                    self.hand_to_pool(id);
                    continue;
                }
                Err(e) => {
                    self.end(id, Err(e));
                    continue;
                }
            };
            // SAFETY: the entry's pieces and buffers are the job's. It stays in `pending` until the ring has answered,
            // and is leaked if the engine is dropped before.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_front((id, flags));
                return;
            }
            self.held += 1;
        }
    }

    fn hand_to_pool(&mut self, id: u64) {
        if let Some(job) = self.pending.get_mut(&id).and_then(|pending| pending.job.take()) {
            self.pool.submit(id, job);
        }
    }

    fn end(&mut self, id: u64, result: io::Result<()>) {
        if let Some(pending) = self.pending.remove(&id) {
            self.ready.push(Completion { token: pending.token, result });
        }
    }

    /// What to do after the ring has answered.
    fn answered(&mut self, id: u64, answer: i32) {
        self.held -= 1;
        let Some(job) = self.pending.get_mut(&id).and_then(|pending| pending.job.as_mut()) else { return };
        match answer {
            0.. => match job.advance(answer as usize) {
                Ok(true) => self.end(id, Ok(())),
                Ok(false) => self.backlog.push_back((id, squeue::Flags::empty())),
                Err(e) => self.end(id, Err(e)),
            },
            // Cancelled is what an ended submitter's requests are.
            _ if [libc::EINTR, libc::EAGAIN, libc::ECANCELED].contains(&-answer) => {
                self.backlog.push_back((id, squeue::Flags::ASYNC));
            }
            _ => {
                let error = io::Error::from_raw_os_error(-answer);
                if blocking::is_unsupported(&error) {
                    self.hand_to_pool(id);
                } else {
                    self.end(id, Err(error));
                }
            }
        }
    }

    fn next_answer(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Tells the kernel about what is in the ring.
    fn enter(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                none => {
                    // Short of memory: the entries stay in the ring. Look again soon.
                    tracing::debug!("io_uring takes no block requests at present: {none:?}");
                    let _ = self.event.write(1);
                    return;
                }
            }
        }
    }
}

impl Drop for UringEngine {
    /// The kernel goes on with what it has begun, and it may be writing to RAM: that is never unmapped then.
    fn drop(&mut self) {
        if self.held > 0 {
            std::mem::forget(std::mem::take(&mut self.pending));
        }
    }
}

/// A job as the ring takes it; `None` for what the ring has no operation for.
fn entry(backing: &Backing, job: &mut Job) -> io::Result<Option<squeue::Entry>> {
    let fd = types::Fd(backing.file.as_raw_fd());
    let allocate = |mode: nix::fcntl::FallocateFlags, offset, len| {
        let fits = backing.kind == ImageKind::File && len > 0;
        fits.then(|| opcode::Fallocate::new(fd, len).offset(offset).mode(mode.bits()).build())
    };
    Ok(match job.operation {
        Operation::Flush => Some(opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()),
        Operation::Discard { offset, len } => allocate(PUNCH, offset, len),
        Operation::WriteZeroes { durable: true, .. } => None,
        Operation::WriteZeroes { offset, len, unmap, .. } => {
            allocate(if unmap { PUNCH } else { ZERO }, offset, len)
        }
        Operation::Read { .. } | Operation::Write { .. } => job.transfer()?.map(|next| {
            let (pieces, count) = (next.pieces.as_ptr(), next.pieces.len() as u32);
            if next.write {
                let flags = if next.durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, pieces, count).offset(next.offset).rw_flags(flags as _).build()
            } else {
                opcode::Readv::new(fd, pieces, count).offset(next.offset).build()
            }
        }),
    })
}

impl Engine for UringEngine {
    fn submit(&mut self, token: u64, operation: Operation) {
        let (name, job) = (operation.name(), Job::new(operation, self.backing.direct));
        self.pending.insert(self.next, Pending::new(token, name, Some(job)));
        self.backlog.push_back((self.next, squeue::Flags::empty()));
        self.next += 1;
    }

    fn kick(&mut self) {
        self.fill();
        self.enter();
        if !self.ready.is_empty() {
            let _ = self.event.write(1);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        // First the event, then what it told: what comes between the two rings again.
        let _ = self.event.read();
        while let Some((id, answer)) = self.next_answer() {
            self.answered(id, answer);
        }
        for (id, result) in self.pool.take_done() {
            self.end(id, result);
        }
        self.fill();
        self.enter();
        done.append(&mut self.ready);
    }

    fn has_done(&mut self) -> bool {
        !self.ready.is_empty() || !self.ring.completion().is_empty() || self.pool.has_done()
    }

    fn event(&self) -> &EventFd {
        &self.event
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn oldest(&self) -> Option<(&'static str, Instant)> {
        self.pending.first_key_value().map(|(_, pending)| (pending.name, pending.since))
    }
}
