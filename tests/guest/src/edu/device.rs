//! The device, driven from user space: by VFIO without an IOMMU (the kernel's Documentation/driver-api/vfio.rst).

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::options::Edu as Wires;

const DEVICES: &str = "/sys/bus/pci/devices";
/// Its vendor and device, as sysfs has them.
const IDENTITY: [&str; 2] = ["0x1234", "0x11e8"];
/// What its first register shows: any revision.
const MAGIC: u32 = 0xed;
const BAR_SIZE: usize = 1 << 20;
const PAGE_SIZE: usize = 4096;

/// Registers.
const STATUS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const DMA_FROM: usize = 0x80;
const DMA_TO: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
/// DMA commands: begin; out of the device; interrupt when done.
const DMA_BEGIN: u64 = 1;
const DMA_OUT: u64 = 2;
const DMA_INTERRUPT: u64 = 4;

mod vfio {
    //! What of `include/uapi/linux/vfio.h` is needed.
    use std::ffi::{c_char, c_int};

    const fn number(of: u8) -> nix::sys::ioctl::ioctl_num_type {
        nix::request_code_none!(b';', of)
    }

    pub const NOIOMMU: c_int = 8;
    /// Data: none, an eventfd. Action: unmask, trigger.
    pub const DATA_NONE: u32 = 1;
    pub const DATA_EVENTFD: u32 = 4;
    pub const UNMASK: u32 = 16;
    pub const TRIGGER: u32 = 32;

    nix::ioctl_write_int_bad!(set_iommu, number(102));
    nix::ioctl_write_ptr_bad!(set_container, number(104), c_int);
    nix::ioctl_write_ptr_bad!(get_device, number(106), c_char);
    nix::ioctl_readwrite_bad!(region_info, number(108), [u64; 4]);
    nix::ioctl_write_ptr_bad!(set_irqs, number(110), [u32; 6]);
}

/// The device.
pub struct Edu {
    device: OwnedFd,
    bar: NonNull<u8>,
    wires: Wires,
    event: EventFd,
    /// Kept open with it.
    _group: File,
    _container: File,
}

// SAFETY: the mapping is of the device's registers, which any thread may use.
unsafe impl Send for Edu {}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("opening {}: {error}", path.display())))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let written = fs::write(path, text);
    written.map_err(|error| io::Error::new(error.kind(), format!("writing {}: {error}", path.display())))
}

/// Where the device is.
fn find() -> io::Result<PathBuf> {
    let is_it = |path: &PathBuf| {
        let read = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
        [read("vendor").trim(), read("device").trim()] == IDENTITY
    };
    let all = fs::read_dir(DEVICES)?.flatten().map(|entry| entry.path());
    all.into_iter().find(is_it).ok_or_else(|| io::Error::other("no such device is there"))
}

impl Edu {
    /// Takes it from the kernel, and has its interrupts come by these wires.
    pub fn open(wires: Wires) -> io::Result<Self> {
        let path = find()?;
        let address = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        write(Path::new("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"), "1")?;
        write(&path.join("driver_override"), "vfio-pci")?;
        write(Path::new("/sys/bus/pci/drivers_probe"), &address)?;
        let link = fs::read_link(path.join("iommu_group"))?;
        let number = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let group = open(&Path::new("/dev/vfio").join(format!("noiommu-{number}")))?;
        let container = open(Path::new("/dev/vfio/vfio"))?;
        let name = CString::new(address)?;
        // SAFETY: the descriptors are open, and what is pointed to outlives each call.
        let device = unsafe {
            vfio::set_container(group.as_raw_fd(), &container.as_raw_fd())?;
            vfio::set_iommu(container.as_raw_fd(), vfio::NOIOMMU)?;
            OwnedFd::from_raw_fd(vfio::get_device(group.as_raw_fd(), name.as_ptr())?)
        };
        let bar = map(&device)?;
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let edu = Self { device, bar, wires, event, _group: group, _container: container };
        if edu.read(0) & 0xff != MAGIC {
            return Err(io::Error::other(format!("its first register shows {:#x}", edu.read(0))));
        }
        edu.enable_master()?;
        edu.acknowledge(edu.status());
        edu.irqs(vfio::DATA_EVENTFD | vfio::TRIGGER)?;
        Ok(edu)
    }

    fn irqs(&self, flags: u32) -> io::Result<()> {
        // VFIO's indices.
        let index = match self.wires {
            Wires::Intx => 0,
            Wires::Msi => 1,
        };
        let set = [24, flags, index, 0, 1, self.event.as_raw_fd() as u32];
        // SAFETY: the descriptors are open; the words outlive the call, which reads as many bytes as the first says.
        unsafe { vfio::set_irqs(self.device.as_raw_fd(), &raw const set) }?;
        Ok(())
    }

    /// Lets it do DMA.
    fn enable_master(&self) -> io::Result<()> {
        let config = File::from(self.device.try_clone()?);
        // Regions lie 2^40 apart, and configuration space is the seventh: so VFIO has had it since there is VFIO.
        let command = (7 << 40) + 4;
        let mut word = [0; 2];
        config.read_exact_at(&mut word, command)?;
        config.write_all_at(&(u16::from_le_bytes(word) | 6).to_le_bytes(), command)
    }

    fn read(&self, register: usize) -> u32 {
        // SAFETY: inside the mapping, and aligned.
        unsafe { self.bar.add(register).cast::<u32>().read_volatile() }
    }

    fn write(&self, register: usize, value: u32) {
        // SAFETY: as for `read`.
        unsafe { self.bar.add(register).cast::<u32>().write_volatile(value) }
    }

    fn write_long(&self, register: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.bar.add(register).cast::<u64>().write_volatile(value) }
    }

    /// Has it interrupt, for these reasons.
    pub fn raise(&self, reasons: u32) {
        self.write(RAISE, reasons);
    }

    /// For which reasons it interrupts.
    pub fn status(&self) -> u32 {
        self.read(STATUS)
    }

    /// Ends that, and lets its pin through again.
    pub fn acknowledge(&self, reasons: u32) {
        self.write(ACKNOWLEDGE, reasons);
        if self.wires == Wires::Intx {
            // Before the pin is wired there is nothing to let through.
            let _ = self.irqs(vfio::DATA_NONE | vfio::UNMASK);
        }
    }

    /// Has it copy, and interrupt when it is done.
    pub fn copy(&self, from: u64, to: u64, count: u64, out: bool) {
        self.write_long(DMA_FROM, from);
        self.write_long(DMA_TO, to);
        self.write_long(DMA_COUNT, count);
        self.write_long(DMA_COMMAND, DMA_BEGIN | DMA_INTERRUPT | if out { DMA_OUT } else { 0 });
    }

    /// Waits for interrupts; gives their number.
    pub fn wait(&self, within: Duration) -> io::Result<u64> {
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)], timeout)?;
        match self.event.read() {
            Err(nix::Error::EAGAIN) => Ok(0),
            read => Ok(read?),
        }
    }
}

/// Maps its registers.
fn map(device: &OwnedFd) -> io::Result<NonNull<u8>> {
    // Length, then index 0; size and offset come back.
    let mut info = [32_u64, 0, 0, 0];
    // SAFETY: the descriptor is open; the structure outlives the call.
    unsafe { vfio::region_info(device.as_raw_fd(), &raw mut info) }?;
    let size = info[2] as usize;
    let size = NonZeroUsize::new(size).filter(|size| (PAGE_SIZE..=BAR_SIZE).contains(&size.get()));
    let size = size.ok_or_else(|| io::Error::other(format!("BAR 0 has {:#x} bytes", info[2])))?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, never unmapped.
    let at = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, device, info[3] as i64) }?;
    Ok(at.cast())
}
