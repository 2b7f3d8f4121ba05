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
use crate::cpr::liveupdate;
use crate::cpr::ownership::{PAGE_SIZE, State};
use crate::cpr::reboot::stamp::{Stamp, StampError};
use crate::monitor::server::refuse_strangers;

/// How often the word is looked at, in milliseconds, if nothing happens.
const LOOKS: u16 = 1000;
/// What it says when it is ready, when it has the guest, and when it is asked whether it lives; and where the kernel has no guest for it.
/// Anything else is an error's beginning.
pub(super) const FOUND: u8 = b'+';
pub(super) const NOTHING: u8 = b'-';
/// How many may visit at a time.
const VISITORS: usize = 16;
/// How long it waits when nobody can be let in.
const BREATH: Duration = Duration::from_millis(100);
/// What its command line ends with where that is so.
const AGAIN: &str = ",again";
/// How long a guest that has come over a kexec waits until it is preserved for the next one.
const SOON: Duration = Duration::from_secs(20);

/// What a keeper is told by its command line: the numbers of the descriptors that it inherits, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Where it listens.
    pub socket: RawFd,
    /// Over which it is given the guest; closed when whoever made it leaves it alone.
    pub lifeline: RawFd,
    /// Whether the guest has come over a kexec: it is to be preserved again for the next.
    pub again: bool,
}

impl Numbers {
    /// What its command line says.
    pub(super) fn word(self) -> String {
        format!("{},{}{}", self.socket, self.lifeline, if self.again { AGAIN } else { "" })
    }

    /// Reads that.
    pub fn parse(text: &str) -> Option<Self> {
        let (text, again) = text.strip_suffix(AGAIN).map_or((text, false), |text| (text, true));
        let [socket, lifeline] = inherit::numbers(text)?[..] else { return None };
        Some(Self { socket, lifeline, again })
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

/// Keeps a guest until somebody else has it, or nobody is to have it.
pub fn serve(guest: &str, numbers: Numbers) -> io::Result<()> {
    let listener = UnixListener::from(inherit::take(numbers.socket)?);
    listener.set_nonblocking(true)?;
    let lifeline = UnixStream::from(inherit::take(numbers.lifeline)?);
    say(&lifeline, &[FOUND]);
    let taken = if numbers.again { retrieved(guest, &lifeline) } else { given(&lifeline).map(Some) };
    let served = taken.and_then(|taken| {
        let Some((session, files)) = taken else { return Ok(()) };
        say(&lifeline, &[FOUND]);
        let state = File::from(files[0].try_clone()?);
        let kept = Kept { guest, session: Some(session), files, since: Instant::now(), again: numbers.again };
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

/// A session, and a guest's memory.
type Guest = (OwnedFd, Vec<OwnedFd>);

/// Receives the guest from whoever has made this keeper for it.
fn given(lifeline: &UnixStream) -> io::Result<Guest> {
    let mut given = passing::receive(lifeline)?.into_iter();
    let session = given.next().filter(|_| given.len() > 0);
    let session = session.ok_or_else(|| io::Error::other("nothing was given to keep"))?;
    Ok((session, given.collect()))
}

/// Takes the guest out of the kernel, if it is there, and says so if it is not.
fn retrieved(guest: &str, lifeline: &UnixStream) -> io::Result<Option<Guest>> {
    match liveupdate::retrieve(guest) {
        Ok(Some((session, files))) if !files.is_empty() => Ok(Some((session, files))),
        Ok(_) => {
            say(lifeline, &[NOTHING]);
            Ok(None)
        }
        Err(error) => {
            say(lifeline, format!("!{error}").as_bytes());
            Err(io::Error::other(error))
        }
    }
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
mod tests {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::path::PathBuf;
    use std::thread::JoinHandle;

    use super::*;
    use crate::config::Uuid;
    use crate::cpr::ownership::Claim;

    /// A guest's state in memory, its keeper, and what that looks at.
    struct Kept {
        directory: tempfile::TempDir,
        stamp: Option<(Stamp, Claim)>,
        lifeline: Option<UnixStream>,
        keeper: JoinHandle<io::Result<()>>,
    }

    impl Kept {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let state = tempfile::tempfile().unwrap();
            state.set_len(2 * PAGE_SIZE).unwrap();
            let claim = Claim::cold_boot();
            let stamp = Stamp::create(&state, 0, PAGE_SIZE, Uuid([3; 16]), 1 << 20, &claim).unwrap();
            let (lifeline, theirs) = UnixStream::pair().unwrap();
            let numbers = Numbers {
                socket: UnixListener::bind(directory.path().join("kept")).unwrap().into_raw_fd(),
                lifeline: theirs.into_raw_fd(),
                again: false,
            };
            let keeper = thread::spawn(move || serve("web", numbers));
            let [session, ram] = [0, 1].map(|_| File::open("/dev/null").unwrap());
            let hear = || (&lifeline).read_exact(&mut [0]).unwrap();
            hear();
            passing::send(&lifeline, &[session.as_fd(), state.as_fd(), ram.as_fd()]).unwrap();
            hear();
            // Whether it lives.
            (&lifeline).write_all(b"?").unwrap();
            hear();
            Self { directory, stamp: Some((stamp, claim)), lifeline: Some(lifeline), keeper }
        }

        fn socket(&self) -> PathBuf {
            self.directory.path().join("kept")
        }

        /// Gives the guest up, and leaves the keeper alone.
        fn offer(&mut self) {
            let (stamp, claim) = self.stamp.take().unwrap();
            stamp.ownership().offer(claim).unwrap();
            self.lifeline = None;
        }

        fn visit(&self) -> (Stamp, UnixStream) {
            let stream = UnixStream::connect(self.socket()).unwrap();
            let files = passing::receive(&stream).unwrap();
            assert_eq!(files.len(), 2);
            (Stamp::open(&File::from(files[0].try_clone().unwrap()), 0, PAGE_SIZE).unwrap(), stream)
        }

        fn ends(&self) -> bool {
            let deadline = Instant::now() + Duration::from_mins(1);
            while !self.keeper.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
            self.keeper.is_finished() && !self.socket().exists()
        }
    }

    #[test]
    fn it_hands_the_guest_out_until_somebody_has_claimed_it() {
        let mut kept = Kept::start();
        kept.offer();
        // One who looks and goes, and one who comes after.
        drop(kept.visit());
        let (stamp, visit) = kept.visit();
        assert!(!kept.keeper.is_finished());
        let _claim = stamp.ownership().claim().unwrap();
        drop(visit);
        assert!(kept.ends());
    }

    #[test]
    fn it_ends_with_whoever_made_it_where_the_guest_was_not_given_up() {
        let mut kept = Kept::start();
        let (stamp, _visit) = kept.visit();
        assert!(stamp.ownership().claim().is_err());
        kept.lifeline = None;
        assert!(kept.ends());
    }

    #[test]
    fn its_descriptors_are_read_as_they_were_told() {
        for again in [false, true] {
            let numbers = Numbers { socket: 5, lifeline: 7, again };
            assert_eq!(Numbers::parse(&numbers.word()), Some(numbers));
        }
        for text in ["", "5", "5,6,7", "5,2", "5,x", "5,", ",again", "5,again"] {
            assert_eq!(Numbers::parse(text), None, "{text}");
        }
    }
}
