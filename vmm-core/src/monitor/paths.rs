//! Where monitors' sockets are.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
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

/// The monitor sockets in the runtime directory, each with the name of its guest, by name. A process may have left one that
/// nobody listens at any more.
pub fn guests() -> io::Result<Vec<(String, PathBuf)>> {
    guests_in(&runtime_dir())
}

fn guests_in(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut guests = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_str().and_then(|name| name.strip_suffix(".sock")).map(str::to_owned);
        if let Some(name) = name
            && entry.file_type()?.is_socket()
        {
            guests.push((name, entry.path()));
        }
    }
    guests.sort();
    Ok(guests)
}

/// The socket that a command's `VM` argument means: a path if it holds a `/`, else a guest's name.
pub fn resolve(vm: &str) -> PathBuf {
    if vm.contains('/') { PathBuf::from(vm) } else { socket_of(vm) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn guests_are_the_sockets_with_a_guests_name_and_no_directory_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(guests_in(&dir.path().join("none")).unwrap(), []);
        let listeners =
            ["web.sock", "db.sock", "web.next"].map(|name| UnixListener::bind(dir.path().join(name)));
        assert!(listeners.iter().all(Result::is_ok));
        std::fs::write(dir.path().join("file.sock"), "").unwrap();
        let names: Vec<_> = guests_in(dir.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["db", "web"]);
    }
}
