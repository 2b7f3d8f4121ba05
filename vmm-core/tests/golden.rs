//! State that released versions have written, and that every later build must read.
//!
//! One file in `golden/` for each released version of the format or of a section; none is ever written again.
//! A new one is added to [`FILES`] and made by `cargo test -p vmm-core --test golden -- --ignored`.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use vmm_core::config::Uuid;
use vmm_core::cpr::Mode;
use vmm_core::cpr::format::{FORMAT_VERSION, HeaderInfo, StateReader, StateWriter, Versions, inspect};
use vmm_core::cpr::reboot::stamp::RamStamp;

/// What writes the state of a golden file today.
type Write = fn() -> Vec<u8>;

/// The golden files.
const FILES: [(&str, Write); 1] = [("format-1.state", format_1)];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

fn header() -> HeaderInfo {
    HeaderInfo {
        mode: Mode::CprReboot,
        guest_name: "golden".into(),
        guest_uuid: "00112233-4455-4677-8899-aabbccddeeff".parse().unwrap(),
        writer: "0.1.0".into(),
        created: 1_700_000_000_123_456_789,
    }
}

fn ram_stamp() -> RamStamp {
    RamStamp {
        uuid: header().guest_uuid.0,
        generation: 0x0123_4567_89ab_cdef << 64 | 0x2a,
        ram_size: 1 << 30,
    }
}

fn format_1() -> Vec<u8> {
    let mut out = StateWriter::new(header());
    out.put(0, &ram_stamp()).unwrap();
    out.finish().unwrap()
}

#[test]
fn format_1_is_read() {
    let bytes = golden("format-1.state");
    let mut reader = StateReader::parse(&bytes).unwrap();
    assert_eq!(reader.header(), &header());
    assert_eq!(reader.take::<RamStamp>(0).unwrap(), ram_stamp());
    reader.finish().unwrap();
    let inspection = inspect(&bytes, &Versions::new().with::<RamStamp>());
    assert_eq!(inspection.problem, None);
    assert_eq!(inspection.header.unwrap().guest_uuid, Uuid(ram_stamp().uuid).to_string());
}

#[test]
fn the_present_format_is_written_as_its_golden_file() {
    assert_eq!(FORMAT_VERSION, 1);
    assert!(format_1() == golden("format-1.state"), "the format's bytes have changed under the same version");
}

#[test]
#[ignore = "writes the golden files that are not there yet"]
fn write_golden_files() {
    for (name, write) in FILES {
        if let Ok(mut file) = File::create_new(path(name)) {
            file.write_all(&write()).unwrap();
        }
    }
}
