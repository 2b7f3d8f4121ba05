//! What a keeper does.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::passing;
use crate::cpr::exec::inherit;
use crate::cpr::liveupdate::{self, LiveUpdateError};
use crate::cpr::ownership::{PAGE_SIZE, State};
use crate::cpr::reboot::stamp::{Stamp, StampError};
use crate::monitor::server::refuse_strangers;

/// How often the word is looked at, in milliseconds, if nothing happens.
const LOOKS: u16 = 1000;
/// What it says when it is ready, when it has the guest, and when it is asked whether it lives; and where the kernel has none for it, so
/// that it is to be given one. Anything else is an error's beginning.
pub(super) const FOUND: u8 = b'+';
pub(super) const NOTHING: u8 = b'-';
/// How many may visit at a time.
const VISITORS: usize = 16;
/// How long it waits when nobody can be let in.
const BREATH: Duration = Duration::from_millis(100);
/// How long a guest that has come over a kexec waits until it is preserved for the next one.
const SOON: Duration = Duration::from_secs(20);

/// What a keeper is told by its command line: the numbers of the descriptors that it inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Where it listens.
    pub socket: RawFd,
    /// Over which it says what it has found, and is given a guest; closed when whoever made it leaves it alone.
    pub lifeline: RawFd,
}

impl Numbers {
    /// What its command line says.
    pub(super) fn word(self) -> String {
        format!("{},{}", self.socket, self.lifeline)
    }

    /// Reads that.
    pub fn parse(text: &str) -> Option<Self> {
        let [socket, lifeline] = inherit::numbers(text)?[..] else { return None };
        Some(Self { socket, lifeline })
    }
}

/// Does not end where it is only asked to.
pub fn ignore_signals() -> io::Result<()> {
    for asked in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: to ignore a signal runs nothing.
        unsafe { signal(asked, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Keeps a guest until somebody else has it, or nobody is to have it: one that the kernel has for it, or else one that it is given.
pub fn serve(guest: &str, numbers: Numbers) -> io::Result<()> {
    serve_what(guest, numbers, || liveupdate::retrieve(guest))
}

/// A session, and a guest's memory.
type Guest = (OwnedFd, Vec<OwnedFd>);
type Found = Result<Option<Guest>, LiveUpdateError>;

fn serve_what(guest: &str, numbers: Numbers, retrieve: impl FnOnce() -> Found) -> io::Result<()> {
    let listener = UnixListener::from(inherit::take(numbers.socket)?);
    listener.set_nonblocking(true)?;
    let lifeline = UnixStream::from(inherit::take(numbers.lifeline)?);
    say(&lifeline, &[FOUND]);
    let served = retrieved(retrieve(), &lifeline).and_then(|found| {
        let again = found.is_some();
        let (session, files) = found.map_or_else(|| given(&lifeline), Ok)?;
        say(&lifeline, &[FOUND]);
        let state = File::from(files[0].try_clone()?);
        let kept = Kept { guest, session: Some(session), files, since: Instant::now(), again };
        kept.serve(&listener, lifeline, &state);
        Ok(())
    });
    if let Some(path) = listener.local_addr()?.as_pathname() {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    served
}

/// One that cannot be sent is one that nobody waits for.
fn say(to: &UnixStream, words: &[u8]) {
    let mut to = to;
    let _ = to.write_all(words);
}

/// Says that it has none, and receives one from whoever has made this keeper for it.
fn given(lifeline: &UnixStream) -> io::Result<Guest> {
    say(lifeline, &[NOTHING]);
    let mut given = passing::receive(lifeline)?.into_iter();
    let session = given.next().filter(|_| given.len() > 0);
    let session = session.ok_or_else(|| io::Error::other("nothing was given to keep"))?;
    Ok((session, given.collect()))
}

/// The guest that was found in the kernel, if somebody is to have it.
fn retrieved(found: Found, lifeline: &UnixStream) -> io::Result<Option<Guest>> {
    let found = found.map_err(|error| {
        say(lifeline, format!("!{error}").as_bytes());
        io::Error::other(error)
    })?;
    let Some((session, files)) = found else { return Ok(None) };
    let Some(state) = files.first() else { return Ok(None) };
    // Whoever made it is of the kernel before this one.
    let over = is_over(&state.try_clone()?.into(), true);
    Ok((!over).then_some((session, files)))
}

/// What a keeper has.
struct Kept<'a> {
    guest: &'a str,
    session: Option<OwnedFd>,
    files: Vec<OwnedFd>,
    since: Instant,
    /// It is to have another session.
    again: bool,
}

impl Kept<'_> {
    fn serve(mut self, listener: &UnixListener, lifeline: UnixStream, state: &File) {
        let mut lifeline = Some(lifeline);
        let mut visitors: Vec<UnixStream> = Vec::new();
        while !is_over(state, lifeline.is_none()) {
            let Ok(ready) = wait(listener, lifeline.as_ref(), &visitors) else {
                thread::sleep(BREATH);
                continue;
            };
            if ready[1] {
                lifeline = lifeline.filter(|mut lifeline| matches!(lifeline.read(&mut [0]), Ok(1..)));
                if let Some(lifeline) = &lifeline {
                    say(lifeline, &[FOUND]);
                }
            }
            let mut gone = ready[2..].iter();
            visitors.retain(|_| gone.next() == Some(&false));
            if ready[0] {
                match self.admit(listener) {
                    Ok(visitor) if visitors.len() < VISITORS => visitors.push(visitor),
                    // Where there is no descriptor left the next try is no better.
                    Ok(_) | Err(_) => thread::sleep(BREATH),
                }
            }
            if self.again && self.since.elapsed() > SOON {
                self.renew();
            }
        }
    }

    /// Gives the guest's memory to a visitor who may have it.
    fn admit(&self, listener: &UnixListener) -> io::Result<UnixStream> {
        let (visitor, _) = listener.accept()?;
        refuse_strangers(&visitor)?;
        let files: Vec<_> = self.files.iter().map(AsFd::as_fd).collect();
        passing::send(&visitor, &files)?;
        Ok(visitor)
    }

    /// Has the next kernel find what the one before this has left. It cannot be in two sessions; and the one that it came in is of no
    /// more use. Where that fails it is tried again.
    fn renew(&mut self) {
        self.session = None;
        self.session = liveupdate::preserve_again(self.guest, &self.files);
        (self.again, self.since) = (self.session.is_none(), Instant::now());
    }
}

/// Waits for something to happen: at the socket, at the lifeline, to each visitor.
fn wait(
    listener: &UnixListener,
    lifeline: Option<&UnixStream>,
    visitors: &[UnixStream],
) -> io::Result<Vec<bool>> {
    let polled = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut all = vec![polled(listener.as_fd()), polled(lifeline.map_or(listener.as_fd(), AsFd::as_fd))];
    all.extend(visitors.iter().map(|visitor| polled(visitor.as_fd())));
    match poll(&mut all, PollTimeout::from(LOOKS)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready: Vec<_> = all.iter().map(|polled| polled.any() == Some(true)).collect();
    ready[1] &= lifeline.is_some();
    Ok(ready)
}

/// Whether nobody is to have the guest in this memory any more, whoever made its keeper having left that alone, or not yet. Memory of
/// which it cannot be told is kept.
pub(in crate::cpr::liveupdate) fn is_over(state: &File, alone: bool) -> bool {
    match Stamp::open(state, 0, PAGE_SIZE).map(|stamp| stamp.ownership().state()) {
        Ok(Ok(State::Target)) => true,
        // Who makes it has not come to the offer yet, or has taken it back.
        Ok(Ok(State::Source)) | Err(StampError::NoStamp(_)) => alone,
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
