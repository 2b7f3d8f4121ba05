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

/// A guest's state in memory, with its RAM and a session that are none.
fn guest() -> (Stamp, Claim, Guest) {
    let state = tempfile::tempfile().unwrap();
    state.set_len(2 * PAGE_SIZE).unwrap();
    let claim = Claim::cold_boot();
    let stamp = Stamp::create(&state, 0, PAGE_SIZE, Uuid([3; 16]), 1 << 20, &claim).unwrap();
    let [session, ram] = [0, 1].map(|_| File::open("/dev/null").unwrap().into());
    (stamp, claim, (session, vec![state.into(), ram]))
}

impl Kept {
    /// One that finds in the kernel what it says.
    fn looking(found: Option<Guest>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (lifeline, theirs) = UnixStream::pair().unwrap();
        let numbers = Numbers {
            socket: UnixListener::bind(directory.path().join("kept")).unwrap().into_raw_fd(),
            lifeline: theirs.into_raw_fd(),
        };
        let keeper = thread::spawn(move || serve_what("web", numbers, || Ok(found)));
        let kept = Self { directory, stamp: None, lifeline: Some(lifeline), keeper };
        assert_eq!(kept.hears(), FOUND);
        kept
    }

    /// One that was given a guest, as the kernel has none.
    fn start() -> Self {
        let mut kept = Self::looking(None);
        assert_eq!(kept.hears(), NOTHING);
        kept.give();
        // Whether it lives.
        kept.lifeline.as_ref().unwrap().write_all(b"?").unwrap();
        kept.hears();
        kept
    }

    fn give(&mut self) {
        let (stamp, claim, (session, files)) = guest();
        let all = [&session, &files[0], &files[1]].map(AsFd::as_fd);
        passing::send(self.lifeline.as_ref().unwrap(), &all).unwrap();
        assert_eq!(self.hears(), FOUND);
        self.stamp = Some((stamp, claim));
    }

    fn hears(&self) -> u8 {
        let mut word = [0];
        self.lifeline.as_ref().unwrap().read_exact(&mut word).unwrap();
        word[0]
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
fn a_guest_that_the_kernel_has_is_kept_and_nobody_elses_taken() {
    let (stamp, claim, found) = guest();
    stamp.ownership().offer(claim).unwrap();
    let mut kept = Kept::looking(Some(found));
    assert_eq!(kept.hears(), FOUND);
    kept.lifeline = None;
    let (stamp, visit) = kept.visit();
    let _claim = stamp.ownership().claim().unwrap();
    drop(visit);
    assert!(kept.ends());
}

#[test]
fn what_a_kexec_has_cut_off_makes_room_for_another() {
    // It was never offered.
    let (_stamp, _claim, found) = guest();
    let mut kept = Kept::looking(Some(found));
    assert_eq!(kept.hears(), NOTHING);
    kept.give();
    kept.offer();
    drop(kept.visit());
    assert!(!kept.keeper.is_finished());
}

#[test]
fn one_that_is_given_nothing_ends() {
    let mut kept = Kept::looking(None);
    assert_eq!(kept.hears(), NOTHING);
    kept.lifeline = None;
    assert!(kept.ends());
}

#[test]
fn its_descriptors_are_read_as_they_were_told() {
    let numbers = Numbers { socket: 5, lifeline: 7 };
    assert_eq!(Numbers::parse(&numbers.word()), Some(numbers));
    for text in ["", "5", "5,6,7", "5,2", "5,x", "5,", "5,7,again"] {
        assert_eq!(Numbers::parse(text), None, "{text}");
    }
}
