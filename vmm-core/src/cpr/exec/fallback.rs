//! The way back: the old binary, executed again to take the guest from the stopover.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::command::Arrival;
use super::inherit;

/// Tells the old binary why it is back.
const REASON: &str = "CPR_EXEC_FAILED";

/// The old binary, and its end of a socket to the stopover.
#[derive(Debug)]
pub struct WayBack {
    /// The old binary, kept open.
    pub binary: OwnedFd,
    /// Its end of a socket to the stopover.
    pub channel: OwnedFd,
}

impl WayBack {
    /// Executes the old binary, which is told `reason`. Returns only if that cannot be done.
    pub fn go(&self, reason: &str) -> io::Error {
        tracing::error!("{reason}; going back to the old binary");
        let back = Arrival { channel: self.channel.as_raw_fd(), back: None };
        let argv = std::iter::once("cpr-load".to_owned()).chain(back.words());
        let environment = std::env::vars_os()
            .filter(|(key, _)| key != REASON)
            .map(|(key, value)| format!("{}={}", key.to_string_lossy(), value.to_string_lossy()))
            .chain(std::iter::once(format!("{REASON}={reason}")));
        // A word with a NUL in it can be neither an argument nor a variable: left out.
        let argv: Vec<CString> = argv.filter_map(|word| CString::new(word).ok()).collect();
        let environment: Vec<CString> = environment.filter_map(|word| CString::new(word).ok()).collect();
        let executed = inherit::set_close_on_exec(&self.channel, false).and_then(|()| {
            let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
            Ok(nix::unistd::execveat(self.binary.as_fd(), c"", &argv, &environment, flags)?)
        });
        match executed {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }
}

/// Why the new binary could not take the guest, where this is the old one again.
pub fn reason() -> Option<String> {
    std::env::var(REASON).ok()
}
