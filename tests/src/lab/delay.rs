//! Slow disks: the kernel's device-mapper delays what a block device does (admin-guide/device-mapper/delay.rst).

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const CONTROL: &str = "/dev/mapper/control";
const DIRECTORY: &str = "/dev/mapper";
/// The version of the interface that is spoken (linux/dm-ioctl.h).
const VERSION: [u32; 3] = [4, 0, 0];
/// `DM_SUSPEND_FLAG`, and `DM_SKIP_LOCKFS_FLAG`: no file system of the host's is on it.
const SUSPEND: u32 = 1 << 1 | 1 << 10;

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// A `struct dm_ioctl` with one `struct dm_target_spec` and its parameters behind it.
#[repr(C)]
struct Request {
    header: Header,
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
    parameters: [u8; 64],
}

mod ioctl {
    use super::Header;
    nix::ioctl_readwrite!(dev_create, 0xfd, 3, Header);
    nix::ioctl_readwrite!(dev_suspend, 0xfd, 6, Header);
    nix::ioctl_readwrite!(table_load, 0xfd, 9, Header);
}

type Call = unsafe fn(i32, *mut Header) -> nix::Result<i32>;

impl Request {
    fn new(name: &str) -> Self {
        let mut header = Header {
            version: VERSION,
            data_size: size_of::<Self>() as u32,
            data_start: size_of::<Header>() as u32,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
        };
        put(&mut header.name, name);
        let (target_type, parameters) = ([0; 16], [0; 64]);
        Self { header, sector_start: 0, length: 0, status: 0, next: 0, target_type, parameters }
    }

    fn make(&mut self, control: &File, call: Call) -> nix::Result<()> {
        // SAFETY: the header says how large the request is that it begins; the kernel writes within that.
        unsafe { call(control.as_raw_fd(), std::ptr::from_mut(self).cast()) }.map(drop)
    }
}

/// Puts a text in a field, which ends with a zero.
fn put(field: &mut [u8], text: &str) {
    let room = field.len() - 1;
    field[..room].iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
}

fn control() -> Result<File> {
    let control = File::options().read(true).write(true).open(CONTROL);
    control.with_context(|| format!("opening {CONTROL}"))
}

/// Where the slow device of this name is.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes a device of this name that is another one, `by` slower in each request.
pub fn make(name: &str, device: &Path, by: Duration) -> Result<()> {
    let sectors = fs::read_to_string(
        Path::new("/sys/class/block").join(device.file_name().unwrap_or_default()).join("size"),
    )
    .with_context(|| format!("reading how large {} is", device.display()))?;
    let control = control()?;
    let mut create = Request::new(name);
    put(&mut create.header.uuid, &format!("lab-{name}"));
    create.make(&control, ioctl::dev_create).context("making a device-mapper device")?;
    let mut load = Request::new(name);
    load.header.target_count = 1;
    load.length = sectors.trim().parse().context("reading a number of sectors")?;
    put(&mut load.target_type, "delay");
    let parameters = format!("{} 0 {}", device.display(), by.as_millis());
    ensure!(parameters.len() < load.parameters.len(), "'{parameters}' is too long");
    put(&mut load.parameters, &parameters);
    load.make(&control, ioctl::table_load).with_context(|| format!("loading its table '{parameters}'"))?;
    // Without the flag that asks for a suspension it resumes, with the table that was loaded.
    let mut resume = Request::new(name);
    resume.make(&control, ioctl::dev_suspend).context("starting it")?;
    let node = format!("/dev/dm-{}", libc::minor(resume.header.dev));
    symlink(&node, path(name)).with_context(|| format!("naming {node}"))
}

/// A slow device that answers nothing that comes while this lives.
pub struct Stall(String);

/// Has the slow device of this name answer what it has, and nothing more.
pub fn stall(name: &str) -> Result<Stall> {
    let mut suspend = Request::new(name);
    suspend.header.flags = SUSPEND;
    suspend.make(&control()?, ioctl::dev_suspend).with_context(|| format!("stalling {name}"))?;
    Ok(Stall(name.to_owned()))
}

impl Drop for Stall {
    /// It goes on with all that has come meanwhile.
    fn drop(&mut self) {
        let resumed =
            control().and_then(|control| Ok(Request::new(&self.0).make(&control, ioctl::dev_suspend)?));
        if let Err(error) = resumed {
            println!("resuming {}: {error:#}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout() {
        assert_eq!((size_of::<Header>(), size_of::<Request>()), (312, 312 + 40 + 64));
    }
}
