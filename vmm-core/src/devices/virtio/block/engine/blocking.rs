//! A request done by a thread that waits for it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::job::Job;
use super::operation::Operation;
use crate::devices::virtio::block::image::Backing;
use crate::devices::virtio::block::probe::ImageKind;

/// The ioctls' numbers (linux/fs.h).
mod nr {
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(BLKDISCARD, 0x12, 119);
    ioctl_io_nr!(BLKZEROOUT, 0x12, 127);
}

/// Gives room back and reads as zeroes from then on.
pub(super) const PUNCH: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

/// Makes zeroes and keeps the room.
pub(super) const ZERO: FallocateFlags =
    FallocateFlags::FALLOC_FL_ZERO_RANGE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

#[repr(align(4096))]
struct Zeroes([u8; 1 << 16]);

static ZEROES: Zeroes = Zeroes([0; 1 << 16]);

/// Does all of it.
pub(super) fn run(backing: &Backing, job: &mut Job) -> io::Result<()> {
    match job.operation {
        Operation::Read { .. } | Operation::Write { .. } => transfer(&backing.file, job),
        Operation::Flush => backing.file.sync_data(),
        Operation::Discard { offset, len } => discard(backing, offset, len),
        Operation::WriteZeroes { offset, len, unmap, durable } => {
            write_zeroes(backing, offset, len, unmap)?;
            if durable { backing.file.sync_data() } else { Ok(()) }
        }
    }
}

/// Whether the answer says that the kernel cannot do it there, rather than that it failed.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

fn transfer(file: &File, job: &mut Job) -> io::Result<()> {
    while let Some(next) = job.transfer()? {
        let (fd, pieces, count) = (file.as_raw_fd(), next.pieces.as_ptr(), next.pieces.len() as libc::c_int);
        let n = if next.write {
            let flags = if next.durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: the pieces are in memory that the job keeps mapped; the kernel only reads it.
            unsafe { libc::pwritev2(fd, pieces, count, next.offset as i64, flags) }
        } else {
            // SAFETY: as above; guest RAM and bounce memory may be written, nothing in this process refers to it.
            unsafe { libc::preadv2(fd, pieces, count, next.offset as i64, 0) }
        };
        match usize::try_from(n) {
            Ok(n) if job.advance(n)? => break,
            Ok(_) => {}
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

/// A discard is advice: where it cannot be followed, nothing is lost.
fn discard(backing: &Backing, offset: u64, len: u64) -> io::Result<()> {
    let done = match backing.kind {
        ImageKind::File => allocate(&backing.file, PUNCH, offset, len),
        ImageKind::BlockDevice => range(&backing.file, nr::BLKDISCARD(), offset, len),
    };
    done.or_else(|e| if is_unsupported(&e) { Ok(()) } else { Err(e) })
}

fn write_zeroes(backing: &Backing, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    let file = &backing.file;
    let done = match (backing.kind, unmap) {
        (ImageKind::BlockDevice, false) => return range(file, nr::BLKZEROOUT(), offset, len),
        (_, true) => allocate(file, PUNCH, offset, len),
        (ImageKind::File, false) => allocate(file, ZERO, offset, len),
    };
    match (done, backing.kind) {
        (Err(e), ImageKind::File) if is_unsupported(&e) => plain_zeroes(file, offset, len),
        (Err(e), ImageKind::BlockDevice) if is_unsupported(&e) => range(file, nr::BLKZEROOUT(), offset, len),
        (done, _) => done,
    }
}

/// Zeroes as any other data, for file systems that know no better.
fn plain_zeroes(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let step = (len - done).min(ZEROES.0.len() as u64);
        file.write_all_at(&ZEROES.0[..step as usize], offset + done)?;
        done += step;
    }
    Ok(())
}

fn allocate(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    // The kernel refuses a length of 0.
    if len == 0 { Ok(()) } else { Ok(fallocate(file, mode, offset as i64, len as i64)?) }
}

fn range(file: &File, ioctl: libc::c_ulong, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: both ioctls read two u64: offset and length.
    let result = unsafe { ioctl_with_ref(file, ioctl, &[offset, len]) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
