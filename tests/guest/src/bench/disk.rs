//! Requests to a disk, by io_uring(7) past the page cache.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use guest_init::measure::{Access, Measured};
use io_uring::{IoUring, opcode, squeue, types};

use super::{Result, since};

/// The unit of buffers, and of what direct I/O must be aligned to.
const PAGE: usize = 4096;

#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; PAGE]);

fn open(device: &str) -> Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let mut file = options.open(format!("/dev/{device}"))?;
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size))
}

/// Where requests go.
struct Places {
    random: bool,
    next: u64,
    count: u64,
}

impl Places {
    fn next(&mut self) -> u64 {
        if self.random {
            // Xorshift: one state after the other, all of them but 0.
            self.next ^= self.next << 13;
            self.next ^= self.next >> 7;
            self.next ^= self.next << 17;
            self.next % self.count
        } else {
            self.next = (self.next + 1) % self.count;
            self.next
        }
    }
}

/// Keeps `depth` requests under way for so long.
pub fn requests(
    device: &str,
    access: Access,
    random: bool,
    size: u32,
    depth: u32,
    time: Duration,
) -> Result<Measured> {
    let (file, bytes) = open(device)?;
    let count = bytes / u64::from(size);
    if count == 0 || !(size as usize).is_multiple_of(PAGE) || !(1..=256).contains(&depth) {
        return Err("this disk cannot be asked for that".into());
    }
    let mut places = Places { random, next: 0x9e37_79b9_7f4a_7c15 % count.max(2) + 1, count };
    let mut buffers = vec![vec![Page([0x5a; PAGE]); size as usize / PAGE]; depth as usize];
    let mut ring = IoUring::new(depth)?;
    let mut sent = vec![Instant::now(); depth as usize];
    let (mut times, mut moved) = (Vec::with_capacity(1 << 16), 0);
    let mut free: Vec<usize> = (0..depth as usize).collect();
    let start = Instant::now();
    loop {
        let going = start.elapsed() < time;
        for slot in free.drain(..).filter(|_| going) {
            let (fd, at) = (types::Fd(file.as_raw_fd()), buffers[slot].as_mut_ptr().cast::<u8>());
            let offset = places.next() * u64::from(size);
            let entry: squeue::Entry = match access {
                Access::Read => opcode::Read::new(fd, at, size).offset(offset).build(),
                Access::Write => opcode::Write::new(fd, at, size).offset(offset).build(),
            };
            sent[slot] = Instant::now();
            // SAFETY: the buffer is this request's alone, and lives until the ring is empty.
            unsafe { ring.submission().push(&entry.user_data(slot as u64))? };
            moved += 1;
        }
        if moved == times.len() {
            break;
        }
        while let Err(error) = ring.submit_and_wait(1) {
            if error.raw_os_error() != Some(libc::EINTR) {
                // The kernel may still be writing there.
                std::mem::forget(buffers);
                return Err(error.into());
            }
        }
        for done in ring.completion() {
            let slot = done.user_data() as usize;
            if done.result() != size as i32 {
                std::mem::forget(buffers);
                return Err(format!("a request for {size} bytes was answered with {}", done.result()).into());
            }
            times.push(since(sent[slot]));
            free.push(slot);
        }
    }
    let bytes = times.len() as u64 * u64::from(size);
    Ok(Measured::of_times(times, bytes, since(start)))
}

/// Writes and flushes, one after the other, for so long.
pub fn flushes(device: &str, time: Duration) -> Result<Measured> {
    let (file, bytes) = open(device)?;
    let mut places = Places { random: true, next: 1, count: (bytes / PAGE as u64).max(1) };
    let page = Box::new(Page([0xa5; PAGE]));
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        file.write_all_at(&page.0, places.next() * PAGE as u64)?;
        let sent = Instant::now();
        file.sync_data()?;
        times.push(since(sent));
    }
    Ok(Measured::of_times(times, 0, since(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_on_the_disk_and_go_on_in_order_or_not() {
        let mut places = Places { random: false, next: 0, count: 3 };
        assert_eq!([0; 4].map(|_| places.next()), [1, 2, 0, 1]);
        let mut places = Places { random: true, next: 1, count: 1000 };
        let first = [0; 50].map(|_| places.next());
        assert!(first.iter().all(|place| *place < 1000));
        assert!(first.windows(2).any(|two| two[1] < two[0]) && first.windows(2).any(|two| two[1] > two[0]));
    }
}
