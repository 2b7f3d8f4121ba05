//! Starting a `cpr-load` at the other end of sockets that it inherits.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// What to start, and what it inherits.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// The program.
    pub(super) program: &'a Path,
    /// Its arguments before `resume`.
    pub(super) leading: &'a [OsString],
    /// What `--from` says.
    pub(super) from: String,
    /// The descriptors that `from` names: the child finds them under the same numbers.
    pub(super) inherited: &'a [&'a OwnedFd],
    /// Where its messages go.
    pub(super) errors: Stdio,
}

impl Start<'_> {
    /// Starts it: `PROGRAM … resume --from FROM`.
    pub(super) fn spawn(self) -> io::Result<Child> {
        let mut command = Command::new(self.program);
        command.args(self.leading).args(["resume", "--from", &self.from]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.errors);
        spawn(command, self.inherited)
    }
}

/// Starts a program with descriptors that are not closed in it.
pub(in crate::cpr) fn spawn(mut command: Command, inherited: &[&OwnedFd]) -> io::Result<Child> {
    let fds: Vec<RawFd> = inherited.iter().map(|fd| fd.as_raw_fd()).collect();
    let inherit = move || {
        fds.iter().try_for_each(|fd| {
            // SAFETY: open in the child until it executes: the caller holds it over the spawn.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(Into::into)
        })
    };
    // SAFETY: the closure makes one system call for each descriptor, allocates nothing, and takes no lock.
    unsafe { command.pre_exec(inherit) };
    command.spawn()
}
