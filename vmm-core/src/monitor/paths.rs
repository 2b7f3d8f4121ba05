//! Where monitors' sockets are.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The runtime directory: `$XDG_RUNTIME_DIR/cpr`, or `/run/cpr` where that is not set.
pub fn runtime_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => Path::new(&dir).join("cpr"),
        _ => PathBuf::from("/run/cpr"),
    }
}

/// Makes the runtime directory (mode 0700) if it is not there. One that is not ours is refused.
pub fn make_runtime_dir() -> io::Result<PathBuf> {
    let dir = runtime_dir();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let (owner, us) = (std::fs::metadata(&dir)?.uid(), nix::unistd::geteuid().as_raw());
    if owner != us {
        return Err(io::Error::other(format!("it belongs to user {owner}; expected {us}")));
    }
    Ok(dir)
}

/// The file name of the monitor socket of the guest called `name`.
pub fn socket_name(name: &str) -> String {
    format!("{name}.sock")
}

/// The monitor socket of the guest called `name`.
pub fn socket_of(name: &str) -> PathBuf {
    runtime_dir().join(socket_name(name))
}

/// The socket that a command's `VM` argument means: a path if it holds a `/`, else a guest's name.
pub fn resolve(vm: &str) -> PathBuf {
    if vm.contains('/') { PathBuf::from(vm) } else { socket_of(vm) }
}
