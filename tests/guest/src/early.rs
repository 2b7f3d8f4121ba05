//! What any init does first.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};

/// What takes over where a root has a userland of its own.
const INIT: &str = "/sbin/init";
/// Where [`modules`] looks: kernel modules, named so that their order is the order to load them in.
pub const MODULES: &str = "/modules";

/// Mounts file systems without a device, each as (directory, kind); one that is mounted already is passed over.
pub fn mounts(systems: &[(&str, &str)]) -> io::Result<()> {
    for (target, kind) in systems {
        fs::create_dir_all(target)?;
        match mount(Some(*kind), *target, Some(*kind), MsFlags::empty(), None::<&str>) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT has mounted /dev itself.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(io::Error::other(format!("mounting {kind} on {target}: {error}"))),
        }
    }
    Ok(())
}

/// Makes what is mounted in a directory the root, takes what is mounted elsewhere along, and gives this process to its init.
pub fn switch_root(root: &str) -> io::Result<Infallible> {
    for system in ["/dev", "/proc", "/sys", "/run"] {
        move_mount(system, &format!("{root}{system}"))?;
    }
    chdir(root)?;
    move_mount(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    let init = CString::new(INIT)?;
    execv(&init, std::slice::from_ref(&init))
        .map_err(|error| io::Error::other(format!("starting {INIT}: {error}")))
}

fn move_mount(from: &str, to: &str) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|error| io::Error::other(format!("moving {from} to {to}: {error}")))
}

/// Loads the kernel modules that lie beside init. One that does not load is said and passed over.
pub fn modules() {
    let Ok(entries) = fs::read_dir(MODULES) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if let Err(error) = load(&path) {
            eprintln!("loading {}: {error}", path.display());
        }
    }
}

fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let options = CString::default();
    // SAFETY: the descriptor is open and the string is null-terminated for the whole call.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), options.as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
