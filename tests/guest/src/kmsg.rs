//! Reads the kernel's log and reports messages of trouble.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_init::frame::Kind;
use guest_init::kernel_log;

use crate::console::Console;
use crate::setup::{self, Before};

/// How many messages of trouble were seen.
#[derive(Default)]
pub struct Seen(AtomicU64);

impl Seen {
    /// How many so far.
    pub fn count(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// Follows the log from its first message, without end.
pub fn run(seen: &Seen, console: &Console) {
    setup::real_time(Before::Load);
    let Ok(mut log) = File::open("/dev/kmsg") else { return };
    let mut record = vec![0; 8192];
    loop {
        let length = match log.read(&mut record) {
            Ok(length) => length,
            // Messages were overwritten before they were read; the next read goes on after them.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
            Err(_) => return,
        };
        let text = String::from_utf8_lossy(&record[..length]);
        let Some(message) = kernel_log::message(&text) else { continue };
        if let Some(class) = kernel_log::class(message) {
            seen.0.fetch_add(1, SeqCst);
            console.line(Kind::Kernel, &format!("{class}: {message}"));
        }
    }
}
