//! What an init does first.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Where kernel modules lie, named so that their order is the order to load them in.
const MODULES: &str = "/modules";

/// Mounts /proc, /sys and /dev.
pub fn mounts() -> Result<(), Box<dyn std::error::Error>> {
    for (target, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")] {
        fs::create_dir_all(target)?;
        match mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT has done it.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(format!("mounting {kind} on {target}: {error}").into()),
        }
    }
    Ok(())
}

/// Loads the kernel modules that were put beside init. One that does not load is said and passed over.
pub fn modules() {
    let Ok(entries) = fs::read_dir(MODULES) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(file) = File::open(&path) else { continue };
        let options = CString::default();
        // SAFETY: the descriptor is open and the string is null-terminated for the whole call.
        let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), options.as_ptr(), 0) };
        if result != 0 {
            eprintln!("guest-init: loading {}: {}", path.display(), std::io::Error::last_os_error());
        }
    }
}

/// Keeps the kernel's messages off the console; only a panic is still printed.
pub fn quiet_console() {
    const SYSLOG_ACTION_CONSOLE_OFF: libc::c_int = 6;
    // SAFETY: this action reads and writes no buffer.
    unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_OFF, std::ptr::null_mut(), 0) };
    // What the kernel was printing at this moment comes to its end.
    std::thread::sleep(std::time::Duration::from_millis(300));
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Lets the calling thread run before any ordinary one, so that load does not delay it.
pub fn real_time() {
    let parameter = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameter outlives the call, and 0 names the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
}
