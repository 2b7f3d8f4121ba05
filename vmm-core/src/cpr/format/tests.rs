//! The format as a whole: what it takes back, and what it refuses.

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;
use crate::config::Uuid;
use crate::cpr::Mode;

/// A clock as an older build knew it: whole seconds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ClockV1 {
    seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ClockV2 {
    nanoseconds: u64,
    source: Option<String>,
}

impl Section for ClockV1 {
    const KIND: SectionKind = SectionKind::Clock;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

impl Section for ClockV2 {
    const KIND: SectionKind = SectionKind::Clock;
    const VERSION: u16 = 2;
    const OLDEST: u16 = 1;
    const OLDEST_WRITTEN: u16 = 1;

    fn decode(version: u16, payload: &[u8]) -> Result<Self, FormatError> {
        if version == 1 {
            let old: ClockV1 = decode_as(Self::KIND, payload)?;
            return Ok(Self { nanoseconds: old.seconds * 1_000_000_000, source: None });
        }
        decode_as(Self::KIND, payload)
    }

    fn encode(&self, version: u16) -> Result<Vec<u8>, FormatError> {
        let whole = self.nanoseconds.is_multiple_of(1_000_000_000) && self.source.is_none();
        match version {
            1 if whole => encode_as(Self::KIND, &ClockV1 { seconds: self.nanoseconds / 1_000_000_000 }),
            2 => encode_as(Self::KIND, self),
            _ => Err(FormatError::CannotWrite { kind: Self::KIND, version }),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Vcpu {
    regs: Vec<u64>,
}

impl Section for Vcpu {
    const KIND: SectionKind = SectionKind::Vcpu;
    const VERSION: u16 = 1;
    const OLDEST: u16 = 1;
}

fn info() -> HeaderInfo {
    HeaderInfo {
        mode: Mode::CprReboot,
        guest_name: "web".into(),
        guest_uuid: Uuid([7; 16]),
        writer: "0.1.0".into(),
        created: 1_700_000_000_000_000_001,
    }
}

fn clock() -> ClockV2 {
    ClockV2 { nanoseconds: 3_000_000_000, source: None }
}

fn vcpu(id: u32) -> Vcpu {
    Vcpu { regs: vec![u64::from(id) << 40; 20] }
}

fn versions() -> Versions {
    Versions::new().with::<ClockV2>().with::<Vcpu>()
}

fn state() -> Vec<u8> {
    let mut out = StateWriter::new(info());
    out.put(0, &clock()).unwrap();
    out.put(0, &vcpu(0)).unwrap();
    out.put(1, &vcpu(1)).unwrap();
    out.finish().unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    StateReader::parse(bytes).expect_err("it must be refused").to_string()
}

/// Where the table and the payloads of [`state`] begin.
const TABLE: usize = header::HEADER_LEN;
const PAYLOADS: usize = TABLE + 4 * table::ENTRY_LEN;

/// Puts right the checksums over a table and header that a test has changed.
fn reseal(bytes: &mut [u8]) {
    let crc = crc32fast::hash(&bytes[TABLE..PAYLOADS]).to_le_bytes();
    bytes[TABLE - 8..TABLE - 4].copy_from_slice(&crc);
    let crc = crc32fast::hash(&bytes[..TABLE - 4]).to_le_bytes();
    bytes[TABLE - 4..TABLE].copy_from_slice(&crc);
}

#[test]
fn what_was_put_in_is_taken_out() {
    let mut reader = StateReader::parse(&state()).unwrap();
    assert_eq!(reader.header(), &info());
    assert_eq!(reader.instances(SectionKind::Vcpu), [0, 1]);
    assert_eq!(reader.take::<Vcpu>(1).unwrap(), vcpu(1));
    assert_eq!(reader.take::<Vcpu>(0).unwrap(), vcpu(0));
    assert_eq!(reader.take_optional::<ClockV2>(0).unwrap(), Some(clock()));
    assert_eq!(reader.take_optional::<ClockV2>(1).unwrap(), None);
    reader.finish().unwrap();
}

#[test]
fn the_same_state_gives_the_same_bytes() {
    assert_eq!(state(), state());
}

#[test]
fn state_with_no_sections_round_trips() {
    StateReader::parse(&StateWriter::new(info()).finish().unwrap()).unwrap().finish().unwrap();
}

#[test]
fn every_truncation_is_refused_and_the_part_named() {
    let bytes = state();
    for length in 0..bytes.len() {
        let error = refusal(&bytes[..length]);
        let part = match length {
            0..TABLE => "truncated in its header",
            TABLE..PAYLOADS => "truncated in its section table",
            _ => "truncated in its section ",
        };
        assert!(error.contains(part), "{length} bytes: {error}");
    }
}

#[test]
fn every_flipped_bit_is_refused_and_the_part_named() {
    let bytes = state();
    for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << bit;
        let error = refusal(&bytes);
        let part = match at {
            0..8 => "not saved state",
            8..12 => "format version",
            12..TABLE => "damaged in its header",
            TABLE..PAYLOADS => "damaged in its section table",
            _ => "damaged in its section ",
        };
        assert!(error.contains(part), "byte {at} bit {bit}: {error}");
    }
}

#[test]
fn a_payload_flip_names_the_section() {
    let mut bytes = state();
    *bytes.last_mut().unwrap() ^= 1;
    assert!(refusal(&bytes).contains("section vcpu #1"));
}

#[test]
fn trailing_bytes_are_refused() {
    let mut bytes = state();
    bytes.push(0);
    assert!(refusal(&bytes).contains(&format!("ends after {}", bytes.len() - 1)));
}

#[test]
fn a_newer_format_is_named_with_both_versions_whatever_follows() {
    let mut bytes = state();
    bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
    for length in [12, 20, bytes.len()] {
        let error = refusal(&bytes[..length]);
        assert!(error.contains("format version 9") && error.contains("reads version 1"), "{error}");
    }
}

#[test]
fn header_fields_are_checked_after_the_checksum() {
    for (at, value, part) in [
        (12, 100u32, "header length"),
        (16, 183, "architecture in the header is ELF machine 183; expected x86-64"),
        (20, 4, "mode"),
        (TABLE - 12, 5000, "number of sections is 5000; at most 4096"),
        (TABLE - 16, 1, "length of the payloads"),
        (56, 0xff, "guest name"),
    ] {
        let mut bytes = state();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes);
        assert!(refusal(&bytes).contains(part), "{part}: {}", refusal(&bytes));
    }
}

#[test]
fn table_fields_are_checked_after_the_checksum() {
    let second = TABLE + table::ENTRY_LEN;
    for (at, value, part) in [
        (second, 99u32, "section kind 99 #0 is unknown"),
        (second + 4, 1, "section vcpu #1 is there twice"),
        (second, u32::MAX, "end section"),
        (PAYLOADS - table::ENTRY_LEN, 1, "end section"),
        (second + 8, 0x0001_0001, "flags of section vcpu #0 is 1; expected 0"),
        (second + 16, 0, "offset of section vcpu #0 is 0"),
        (second + 20, u32::MAX, "offset of section vcpu #0"),
        (second + 24, 1 << 30, "length of section vcpu #0"),
        (second + 28, u32::MAX, "length of section vcpu #0"),
        (PAYLOADS - 4, u32::MAX, "length of section end #0"),
        (PAYLOADS - 28, 1, "instance of section end #1"),
    ] {
        let mut bytes = state();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes);
        assert!(refusal(&bytes).contains(part), "{part}: {}", refusal(&bytes));
    }
}

#[test]
fn a_missing_a_doubled_and_an_untaken_section_are_named() {
    let mut out = StateWriter::new(info());
    out.put(3, &vcpu(3)).unwrap();
    assert_eq!(out.put(3, &vcpu(3)).unwrap_err().to_string(), "section vcpu #3 is there twice");
    let mut reader = StateReader::parse(&out.finish().unwrap()).unwrap();
    assert_eq!(reader.take::<Vcpu>(2).unwrap_err().to_string(), "section vcpu #2 is missing");
    assert!(reader.finish().unwrap_err().to_string().starts_with("section vcpu #3 is not for this machine"));
}

#[test]
fn a_section_cannot_be_taken_twice() {
    let mut reader = StateReader::parse(&state()).unwrap();
    reader.take::<Vcpu>(0).unwrap();
    assert!(reader.take::<Vcpu>(0).is_err());
}

#[test]
fn a_payload_that_is_too_long_or_too_short_names_its_section() {
    #[derive(Serialize, Deserialize)]
    struct Other(Vec<u64>, u8);
    impl Section for Other {
        const KIND: SectionKind = SectionKind::Vcpu;
        const VERSION: u16 = 1;
        const OLDEST: u16 = 1;
    }
    let mut reader = StateReader::parse(&state()).unwrap();
    let error = reader.take::<Other>(1).err().unwrap().to_string();
    assert!(error.starts_with("section vcpu #1, version 1: section vcpu: its"), "{error}");
    let mut out = StateWriter::new(info());
    out.put(0, &Other(vec![1], 2)).unwrap();
    let error = StateReader::parse(&out.finish().unwrap()).unwrap().take::<Vcpu>(0).unwrap_err();
    assert!(error.to_string().contains("it has 3 bytes, of which 2 were read"), "{error}");
}

#[test]
fn a_length_inside_a_payload_is_not_believed() {
    let mut payload = vec![0xff; 9];
    payload.push(1);
    assert!(decode_as::<Vec<u64>>(SectionKind::Vcpu, &payload).is_err());
    assert!(decode_as::<Vec<[u64; 16]>>(SectionKind::Vcpu, &payload).is_err());
    assert!(decode_as::<String>(SectionKind::Vcpu, &payload).is_err());
    assert!(decode_as::<std::collections::BTreeMap<u32, [u64; 16]>>(SectionKind::Vcpu, &payload).is_err());
}

#[test]
fn an_older_section_is_read_and_stepped_up() {
    let mut out = StateWriter::new(info());
    out.put(0, &ClockV1 { seconds: 3 }).unwrap();
    let mut reader = StateReader::parse(&out.finish().unwrap()).unwrap();
    assert_eq!(reader.take::<ClockV2>(0).unwrap(), clock());
}

#[test]
fn a_newer_section_is_refused_with_both_versions() {
    let mut reader = StateReader::parse(&state()).unwrap();
    let error = reader.take::<ClockV1>(0).unwrap_err().to_string();
    assert_eq!(error, "section clock #0 is version 2; this build reads 1 to 1");
}

#[test]
fn a_section_is_written_in_the_version_that_the_peer_reads() {
    let peer = Versions::new().with::<ClockV1>();
    versions().only(&[SectionKind::Clock]).check_writes_for(&peer).unwrap();
    let mut out = StateWriter::new(info()).reading(&peer);
    out.put(0, &clock()).unwrap();
    let mut reader = StateReader::parse(&out.finish().unwrap()).unwrap();
    assert_eq!(reader.take::<ClockV1>(0).unwrap(), ClockV1 { seconds: 3 });
}

#[test]
fn a_step_back_that_would_lose_state_is_refused() {
    let mut out = StateWriter::new(info()).reading(&Versions::new().with::<ClockV1>());
    let error = out.put(0, &ClockV2 { nanoseconds: 5, source: None }).unwrap_err();
    assert!(error.to_string().contains("clock cannot be written as version 1"), "{error}");
}

#[test]
fn builds_that_do_not_fit_are_told_so_by_kind_and_versions() {
    #[derive(Serialize, Deserialize)]
    struct ClockV5;
    impl Section for ClockV5 {
        const KIND: SectionKind = SectionKind::Clock;
        const VERSION: u16 = 5;
        const OLDEST: u16 = 4;
    }
    let newer = Versions::new().with::<ClockV5>();
    let ours = versions().only(&[SectionKind::Clock]);
    let error = ours.check_writes_for(&newer).unwrap_err().to_string();
    assert_eq!(error, "section clock: this build writes versions 1 to 2; the other reads 4 to 5");
    let error = newer.check_writes_for(&ours).unwrap_err().to_string();
    assert_eq!(error, "section clock: this build writes versions 5 to 5; the other reads 1 to 2");
    let error = versions().check_writes_for(&ours).unwrap_err().to_string();
    assert_eq!(error, "section vcpu: this build writes it, the other does not know it");
    ours.check_writes_for(&versions()).unwrap();
}

#[test]
fn versions_with_a_kind_that_we_do_not_know_survive_the_hello() {
    let json =
        r#"{"5":{"oldest":1,"newest":2,"oldest_written":1},"99":{"oldest":1,"newest":1,"oldest_written":1}}"#;
    let peer: Versions = serde_json::from_str(json).unwrap();
    versions().only(&[SectionKind::Clock]).check_writes_for(&peer).unwrap();
    assert_eq!(serde_json::to_string(&peer).unwrap(), json);
}

#[test]
fn a_name_that_does_not_fit_the_header_is_refused() {
    for name in ["x".repeat(65), "a\0b".into()] {
        let out = StateWriter::new(HeaderInfo { guest_name: name, ..info() });
        assert!(out.finish().unwrap_err().to_string().contains("guest name"));
    }
}

#[test]
fn too_many_sections_and_too_many_bytes_are_refused_by_the_writer() {
    let mut out = StateWriter::new(info());
    let error = (0..5000).find_map(|i| out.put(i, &Vcpu { regs: vec![] }).err()).unwrap();
    assert!(error.to_string().contains("number of sections is 4097; at most 4096"), "{error}");
    let mut out = StateWriter::new(info());
    let large = ClockV2 { nanoseconds: 0, source: Some("x".repeat(MAX_STATE)) };
    assert!(out.put(0, &large).unwrap_err().to_string().contains("length"));
}

#[test]
fn a_kernel_structure_round_trips_and_one_of_another_size_is_refused() {
    let regs = kvm_bindings::kvm_regs { rip: 0xfff0, ..Default::default() };
    let bytes = encode_as(SectionKind::Vcpu, &KernelBytes::new(regs)).unwrap();
    let back: KernelBytes<kvm_bindings::kvm_regs> = decode_as(SectionKind::Vcpu, &bytes).unwrap();
    assert_eq!(back.get().unwrap(), &regs);
    let other: KernelBytes<kvm_bindings::kvm_sregs> = decode_as(SectionKind::Vcpu, &bytes).unwrap();
    let error = other.get().unwrap_err().to_string();
    assert_eq!(error, "kernel structure kvm_sregs is 144 bytes in the saved state; this build's is 312");
    assert!(encode_as(SectionKind::Vcpu, &other).is_err());
}

#[test]
fn inspection_of_whole_state_finds_nothing_wrong() {
    let inspection = inspect(&state(), &versions());
    assert_eq!(inspection.problem, None);
    let kinds: Vec<_> = inspection.sections.iter().map(|s| s.kind.as_str()).collect();
    assert_eq!(kinds, ["clock", "vcpu", "vcpu", "end"]);
    assert!(inspection.sections.iter().all(|s| s.verdict == "ok"));
    let text = inspection.to_string();
    assert!(text.contains("guest          web (07070707-") && text.ends_with("can be loaded"), "{text}");
    assert!(serde_json::to_string(&inspection).unwrap().contains(r#""mode":"cpr-reboot""#));
}

#[test]
fn inspection_names_the_damaged_section_and_shows_the_rest() {
    let mut bytes = state();
    *bytes.last_mut().unwrap() ^= 1;
    let inspection = inspect(&bytes, &Versions::new().with::<ClockV1>());
    let verdicts: Vec<_> = inspection.sections.iter().map(|s| s.verdict.as_str()).collect();
    assert_eq!(verdicts[0], "version 2; this build reads 1 to 1");
    assert_eq!(verdicts[1], "unknown to this build");
    assert!(verdicts[2].starts_with("damaged"));
    assert!(inspection.problem.unwrap().contains("section vcpu #1"));
}

#[test]
fn inspection_goes_as_far_as_the_bytes_do() {
    let bytes = state();
    let truncated = inspect(&bytes[..PAYLOADS + 2], &versions());
    assert_eq!((truncated.sections.len(), truncated.sections[0].verdict.as_str()), (4, "truncated"));
    let mut newer = bytes.clone();
    newer[8] = 2;
    let newer = inspect(&newer, &versions());
    assert!(newer.header.is_none() && newer.problem.unwrap().contains("format version 2"));
    let mut damaged = bytes.clone();
    damaged[40] ^= 1;
    let damaged = inspect(&damaged, &versions()).header.unwrap();
    assert!(damaged.guest_name == "web" && damaged.verdict.contains("damaged in its header"));
}

proptest! {
    #[test]
    fn random_flips_are_refused_and_nothing_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = state();
        let mut bytes = whole.clone();
        for (at, mask) in flips {
            bytes[at.index(whole.len())] ^= mask;
        }
        prop_assert!(bytes == whole || StateReader::parse(&bytes).is_err());
        let short = &bytes[..cut.index(whole.len())];
        prop_assert!(StateReader::parse(short).is_err());
        let _ = inspect(short, &versions());
        let _ = inspect(&bytes, &versions()).to_string();
    }

    #[test]
    fn a_table_of_any_content_under_right_checksums_never_panics(
        table in prop::collection::vec(any::<u8>(), PAYLOADS - TABLE),
    ) {
        let mut bytes = state();
        bytes[TABLE..PAYLOADS].copy_from_slice(&table);
        reseal(&mut bytes);
        prop_assert!(StateReader::parse(&bytes).is_err());
        let _ = inspect(&bytes, &versions()).to_string();
    }

    #[test]
    fn random_bytes_never_decode_to_more_than_they_hold(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(vcpu) = decode_as::<Vcpu>(SectionKind::Vcpu, &payload) {
            prop_assert!(vcpu.regs.len() < payload.len());
        }
    }
}
