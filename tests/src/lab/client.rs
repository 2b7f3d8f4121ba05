//! A client of a socket that a guest's console is on.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Between two tries to connect.
pub const RETRY: Duration = Duration::from_millis(20);

/// What a client sees.
pub enum Event<'a> {
    /// It is about to connect.
    Unconnected,
    /// It is connected; what is written to this reaches the guest.
    Connected(UnixStream),
    /// These bytes came.
    Bytes(&'a [u8]),
    /// The connection ended.
    Ended,
}

/// Connects, reads, and connects again as soon as the socket takes it, for as long as what it sees is answered with `true`. The
/// bytes read are kept in `log`.
pub fn follow(socket: &Path, mut log: File, mut sees: impl FnMut(Event) -> bool) {
    let mut buffer = [0; 4096];
    while sees(Event::Unconnected) {
        let pair = UnixStream::connect(socket).and_then(|stream| Ok((stream.try_clone()?, stream)));
        let Ok((writer, mut stream)) = pair else {
            thread::sleep(RETRY);
            continue;
        };
        if !sees(Event::Connected(writer)) {
            return;
        }
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let _ = log.write_all(&buffer[..length]);
            if !sees(Event::Bytes(&buffer[..length])) {
                return;
            }
        }
        if !sees(Event::Ended) {
            return;
        }
    }
}
