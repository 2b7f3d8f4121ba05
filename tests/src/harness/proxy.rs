//! One who stands between the two sides of a transfer.
//!
//! 1. Both sides speak the real protocol over real sockets; nothing in the product knows of the proxy.
//! 2. Each frame, with its descriptors, is shown to the test before and after it is passed on.
//! 3. A frame that is changed gets right checksums again, so that what is tried is what lies behind them; one that is
//!    damaged does not.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::eventfd::EventFd;
use vmm_core::cpr::transfer::channel::Channel;
use vmm_core::cpr::transfer::frame::{Frame, FrameHeader};
use zerocopy::IntoBytes;

/// A side of the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that has the guest.
    Source,
    /// The one that is to have it.
    Target,
}

/// Whether a frame is about to be passed on, or has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// About to be.
    Before,
    /// Has been.
    After,
}

/// A frame that crosses.
#[derive(Debug)]
pub struct Crossing {
    /// Who sent it.
    pub from: Side,
    /// Before or after it is passed on.
    pub moment: Moment,
    /// The frame; what is changed before is passed on changed.
    pub frame: Frame,
}

/// What becomes of a frame, or after it, of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is passed on.
    Pass,
    /// It is passed on twice.
    Repeat,
    /// It is swallowed.
    Swallow,
    /// It is passed on without its descriptors and with one bit of this byte flipped.
    Damage(usize),
    /// Nothing more crosses in this direction, and both sides' sockets stay open.
    Hang,
    /// Both sides' sockets are closed.
    Close,
}

/// What the test does with each crossing.
type Attack = dyn FnMut(&mut Crossing) -> Action + Send;

/// The one in between. Its sockets close on drop.
#[derive(Debug)]
pub struct Proxy {
    /// Where the source is to connect.
    pub socket: PathBuf,
    cancel: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on `socket` for one source, and connects it with the target that listens on `target`.
    pub fn start(
        socket: PathBuf,
        target: &Path,
        attack: impl FnMut(&mut Crossing) -> Action + Send + 'static,
    ) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(&socket).context("listening as the proxy")?;
        let to_target = UnixStream::connect(target).context("connecting the proxy to the target")?;
        let cancel = Arc::new(EventFd::new().context("making an eventfd")?);
        let attack: Arc<Mutex<Attack>> = Arc::new(Mutex::new(attack));
        let thread = std::thread::spawn({
            let cancel = cancel.clone();
            move || {
                let Some(to_source) = accept(&listener, &cancel) else { return };
                let directions =
                    [(Side::Source, &to_source, &to_target), (Side::Target, &to_target, &to_source)];
                std::thread::scope(|scope| {
                    for (from, input, output) in directions {
                        let (cancel, attack) = (&cancel, &attack);
                        scope.spawn(move || pump(from, input, output, cancel, attack));
                    }
                });
            }
        });
        Ok(Self { socket, cancel, thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.cancel.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &UnixListener, cancel: &EventFd) -> Option<UnixStream> {
    listener.set_nonblocking(true).ok()?;
    loop {
        if let Ok((stream, _)) = listener.accept() {
            return Some(stream);
        }
        if vmm_core::cpr::transfer::channel::was_cancelled(std::os::fd::AsFd::as_fd(cancel)) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn channel(stream: &UnixStream, cancel: &EventFd) -> std::io::Result<Channel> {
    let cancel = std::os::fd::AsFd::as_fd(cancel).try_clone_to_owned()?;
    Channel::new(stream.try_clone()?, Some(cancel))
}

/// Passes frames on until one side closes, the proxy is dropped, or the test says otherwise.
fn pump(from: Side, input: &UnixStream, output: &UnixStream, cancel: &EventFd, attack: &Mutex<Attack>) {
    let (Ok(mut reader), Ok(mut writer)) = (channel(input, cancel), channel(output, cancel)) else { return };
    let far = || Instant::now() + Duration::from_mins(2);
    let close = || {
        let _ = input.shutdown(Shutdown::Both);
        let _ = output.shutdown(Shutdown::Both);
    };
    let judge = |crossing: &mut Crossing| attack.lock().unwrap_or_else(PoisonError::into_inner)(crossing);
    while let Ok(frame) = reader.receive(far()) {
        let mut crossing = Crossing { from, moment: Moment::Before, frame };
        let action = judge(&mut crossing);
        let frame = &crossing.frame;
        let fds: Vec<_> = frame.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut pass = || writer.send(frame.kind, &frame.payload, &fds, far()).is_ok();
        let passed = match action {
            // Whoever is gone may have said why: the other direction brings that, and closes.
            Action::Pass if !pass() => return,
            Action::Repeat if !(pass() && pass()) => return,
            Action::Pass | Action::Repeat | Action::Swallow => true,
            Action::Damage(at) => send_damaged(output, frame, at),
            Action::Hang => return,
            Action::Close => false,
        };
        if !passed {
            break;
        }
        crossing.moment = Moment::After;
        match judge(&mut crossing) {
            Action::Hang => return,
            Action::Close => break,
            _ => {}
        }
    }
    close();
}

fn send_damaged(mut output: &UnixStream, frame: &Frame, at: usize) -> bool {
    let header = FrameHeader::new(frame.kind, frame.sequence, &frame.payload, 0);
    let mut bytes = [header.as_bytes(), &frame.payload].concat();
    let at = at % bytes.len();
    bytes[at] ^= 1;
    output.write_all(&bytes).is_ok()
}
