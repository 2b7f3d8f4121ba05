//! What a keeper does.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::cpr::exec::inherit;
use crate::cpr::ownership::{PAGE_SIZE, State};
use crate::cpr::reboot::stamp::{Stamp, StampError};
use crate::monitor::server::refuse_strangers;

/// How often the word is looked at, in milliseconds, if nothing happens.
const LOOKS: u16 = 1000;
/// How many may visit at a time.
const VISITORS: usize = 16;

/// The numbers of the descriptors that a keeper inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// Where it listens.
    pub socket: RawFd,
    /// The session.
    pub session: RawFd,
    /// What is closed when whoever made it leaves it alone.
    pub lifeline: RawFd,
    /// The guest's memory: its state's, and its RAM's.
    pub files: Vec<RawFd>,
}

impl Numbers {
    /// What its command line says.
    pub(super) fn word(&self) -> String {
        let all = [self.socket, self.session, self.lifeline].into_iter().chain(self.files.iter().copied());
        all.map(|number| number.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Reads that.
    pub fn parse(text: &str) -> Option<Self> {
        let numbers: Option<Vec<RawFd>> =
            text.split(',').map(|word| word.parse().ok().filter(|number| *number > 2)).collect();
        let [socket, session, lifeline, files @ ..] = &numbers?[..] else { return None };
        let files = files.to_vec();
        (!files.is_empty()).then_some(Self { socket: *socket, session: *session, lifeline: *lifeline, files })
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
pub fn serve(numbers: &Numbers) -> io::Result<()> {
    let listener = UnixListener::from(inherit::take(numbers.socket)?);
    listener.set_nonblocking(true)?;
    let _session = inherit::take(numbers.session)?;
    let mut lifeline = Some(inherit::take(numbers.lifeline)?);
    let files = numbers.files.iter().map(|number| inherit::take(*number)).collect::<io::Result<Vec<_>>>()?;
    let state = File::from(files[0].try_clone()?);
    let mut visitors: Vec<UnixStream> = Vec::new();
    while !is_over(&state, lifeline.is_none()) {
        let ready = wait(&listener, lifeline.as_ref(), &visitors)?;
        if ready[1] {
            lifeline = None;
        }
        let mut gone = ready[2..].iter();
        visitors.retain(|_| gone.next() == Some(&false));
        if ready[0] {
            visitors.extend(admit(&listener, &files, visitors.len()));
        }
    }
    if let Some(path) = listener.local_addr()?.as_pathname() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Waits for something to happen: at the socket, at the lifeline, to each visitor.
fn wait(
    listener: &UnixListener,
    lifeline: Option<&OwnedFd>,
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

/// Gives the guest's memory to a visitor who may have it.
fn admit(listener: &UnixListener, files: &[OwnedFd], there: usize) -> Option<UnixStream> {
    let give = || -> io::Result<UnixStream> {
        let (visitor, _) = listener.accept()?;
        refuse_strangers(&visitor)?;
        if there >= VISITORS {
            return Err(io::Error::other(format!("{there} others are there already")));
        }
        let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let (bytes, rights) = ([io::IoSlice::new(b"\n")], [ControlMessage::ScmRights(&numbers)]);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(visitor.as_raw_fd(), &bytes, &rights, flags, None)?;
        Ok(visitor)
    };
    give().inspect_err(|error| tracing::warn!("somebody who asked for the guest is sent away: {error}")).ok()
}

/// Whether nobody will ask any more. Memory of which it cannot be told is kept.
fn is_over(state: &File, alone: bool) -> bool {
    match Stamp::open(state, 0, PAGE_SIZE).map(|stamp| stamp.ownership().state()) {
        Ok(Ok(State::Target)) => true,
        // Who makes it has not come to the offer yet, or has taken it back.
        Ok(Ok(State::Source)) | Err(StampError::NoStamp(_)) => alone,
        Ok(_) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::path::PathBuf;
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};

    use super::super::visit::receive;
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
            let null = || File::open("/dev/null").unwrap().into_raw_fd();
            let numbers = Numbers {
                socket: UnixListener::bind(directory.path().join("kept")).unwrap().into_raw_fd(),
                session: null(),
                lifeline: theirs.into_raw_fd(),
                files: vec![state.into_raw_fd(), null()],
            };
            let keeper = thread::spawn(move || serve(&numbers));
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
            let files = receive(&stream).unwrap();
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
        let numbers = Numbers { socket: 5, session: 6, lifeline: 7, files: vec![8, 9] };
        assert_eq!(Numbers::parse(&numbers.word()), Some(numbers));
        for text in ["", "5", "5,6,7", "5,6,7,2", "5,6,7,x", "5,,7,8"] {
            assert_eq!(Numbers::parse(text), None, "{text}");
        }
    }
}
