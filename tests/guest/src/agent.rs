//! As much of QEMU's guest agent as suspending the guest needs, on the port that it has for that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::power;
use crate::setup::{self, Before};

const PORTS: &str = "/sys/class/virtio-ports";
const PORT: &str = "org.qemu.guest_agent.0";
/// What an answer to a synchronization begins with; asked for with one, what came before is dropped.
const SENTINEL: u8 = 0xff;
/// Between two looks at a port that nobody is at.
const RETRY: Duration = Duration::from_millis(100);

/// How late a suspension is that is to be.
const LATE: Duration = Duration::from_secs(5);

static IS_LATE: AtomicBool = AtomicBool::new(false);

/// Has the next suspension be late.
pub fn be_late() {
    IS_LATE.store(true, SeqCst);
}

/// Answers without end.
pub fn run() {
    setup::real_time(Before::Load);
    loop {
        if let Some(path) = port()
            && let Ok(file) = OpenOptions::new().read(true).write(true).open(path)
        {
            // The port goes away when its driver does.
            let _ = serve(&file);
        }
        thread::sleep(RETRY);
    }
}

/// The port's device.
fn port() -> Option<PathBuf> {
    let ports = fs::read_dir(PORTS).ok()?.flatten();
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT)
    };
    ports.into_iter().find(named).map(|entry| Path::new("/dev").join(entry.file_name()))
}

fn serve(mut port: &File) -> io::Result<()> {
    let (mut line, mut buffer) = (Vec::new(), [0; 256]);
    loop {
        let length = port.read(&mut buffer)?;
        if length == 0 {
            thread::sleep(RETRY);
        }
        for &byte in &buffer[..length] {
            match byte {
                SENTINEL => line.clear(),
                b'\n' => {
                    if let Some(answer) = answer(&line) {
                        port.write_all(&answer)?;
                    }
                    line.clear();
                }
                byte => line.push(byte),
            }
        }
    }
}

/// What is said to a command, if something is.
fn answer(line: &[u8]) -> Option<Vec<u8>> {
    let asked: Value = serde_json::from_slice(line).unwrap_or_default();
    let refused = |why: String| Some(json!({"error": {"class": "GenericError", "desc": why}}));
    let (before, said) = match asked["execute"].as_str().unwrap_or_default() {
        "guest-sync-delimited" => (vec![SENTINEL], Some(json!({"return": asked["arguments"]["id"]}))),
        // Nothing is said of what went well: the guest may not run any more when it could be.
        "guest-suspend-ram" => {
            if IS_LATE.swap(false, SeqCst) {
                thread::sleep(LATE);
            }
            let done = power::sleep();
            (Vec::new(), done.err().and_then(|error| refused(format!("suspending: {error}"))))
        }
        other => (Vec::new(), refused(format!("{other:?} is not known"))),
    };
    said.map(|said| [before, format!("{said}\n").into_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synchronization_is_answered_behind_a_byte_that_no_json_has() {
        let asked = br#"{"execute": "guest-sync-delimited", "arguments": {"id": 42}}"#;
        assert_eq!(answer(asked).unwrap(), b"\xff{\"return\":42}\n");
        assert!(answer(b"nonsense").unwrap().starts_with(b"{\"error\""));
    }
}
