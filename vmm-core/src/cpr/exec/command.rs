//! Which program an exec starts, and with which arguments.

use std::ffi::{CString, NulError, OsString};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::inherit;

/// A program with its leading arguments; what it shall do is appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCommand {
    words: Vec<OsString>,
}

impl ExecCommand {
    /// The words given, or the program that is now at this process's own path.
    pub fn new(words: &[String]) -> io::Result<Self> {
        let words = if words.is_empty() {
            vec![own_path()?.into_os_string()]
        } else {
            words.iter().map(OsString::from).collect()
        };
        Ok(Self { words })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        Path::new(&self.words[0])
    }

    /// Looks for the program as `execvp` will: in `PATH` unless its name holds a `/`.
    pub fn find(&self) -> io::Result<()> {
        let found = |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK);
        if self.words[0].as_bytes().contains(&b'/') {
            return Ok(found(self.program())?);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let any = std::env::split_paths(&path).any(|dir| found(&dir.join(self.program())).is_ok());
        if any { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The words after the program.
    pub fn leading_arguments(&self) -> &[OsString] {
        &self.words[1..]
    }

    /// The whole argument vector for [`Arrival`].
    pub fn argv(&self, arrival: &Arrival) -> Result<Vec<CString>, NulError> {
        self.words
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .chain(arrival.words().map(CString::new))
            .collect()
    }
}

/// What the new image finds: numbers of inherited descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The socket to the stopover that has the guest.
    pub channel: RawFd,
    /// The old binary's socket to it, and the old binary; absent where this is the old binary coming back.
    pub back: Option<(RawFd, RawFd)>,
}

impl Arrival {
    /// The arguments that tell it: `resume --from exec:CHANNEL[,BACK,BINARY]`.
    pub fn words(self) -> impl Iterator<Item = String> {
        let back = self.back.map(|(back, binary)| format!(",{back},{binary}")).unwrap_or_default();
        ["resume".to_owned(), "--from".to_owned(), format!("exec:{}{back}", self.channel)].into_iter()
    }

    /// Reads `CHANNEL[,BACK,BINARY]`.
    pub fn parse(text: &str) -> Option<Self> {
        match inherit::numbers(text)?[..] {
            [channel] => Some(Self { channel, back: None }),
            [channel, back, binary] => Some(Self { channel, back: Some((back, binary)) }),
            _ => None,
        }
    }
}

/// The path this process was started from. A binary that was replaced since is named without the kernel's mark.
fn own_path() -> io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path).to_vec();
    Ok(OsString::from_vec(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_is_read_as_it_was_told() {
        for arrival in [Arrival { channel: 7, back: Some((9, 11)) }, Arrival { channel: 7, back: None }] {
            let told = arrival.words().last().unwrap();
            assert_eq!(Arrival::parse(told.strip_prefix("exec:").unwrap()), Some(arrival));
        }
        for text in ["", "0", "x", "5,", "5,7", "5,2,9", "5,7,9,11", "-1"] {
            assert_eq!(Arrival::parse(text), None, "{text}");
        }
    }

    #[test]
    fn without_a_command_the_program_at_our_own_path_is_started() {
        let command = ExecCommand::new(&[]).unwrap();
        assert_eq!(command.program(), std::env::current_exe().unwrap());
    }
}
