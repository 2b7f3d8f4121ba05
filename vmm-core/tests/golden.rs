//! State that released versions have written, and that every later build must read.
//!
//! One file in `golden/` for each released version of the format or of a section; none is ever written again.
//! `guest-N.state` is a guest saved by `cpr-save reboot`: a bare-metal guest with 2 vCPUs; from 2 on with two entropy
//! devices on the PCI bus, the first at work; 3 is one without these that sleeps until an alarm of its clock's.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use vmm_core::config::Uuid;
use vmm_core::cpr::Mode;
use vmm_core::cpr::format::{
    FORMAT_VERSION, HeaderInfo, Section, SectionKind, SectionVersions, StateReader, StateWriter, Versions,
    inspect,
};
use vmm_core::cpr::reboot::stamp::RamStamp;
use vmm_core::devices::chardev::ChardevState;
use vmm_core::devices::pci::{MsixState, PciBusState, PciConfigState};
use vmm_core::devices::pm::PmState;
use vmm_core::devices::rtc::RtcState;
use vmm_core::devices::serial::SerialState;
use vmm_core::devices::virtio::VirtioState;
use vmm_core::machine::state::{MachineState, RunStateRecord};
use vmm_core::memory::RamBlockState;
use vmm_core::vcpu::state::VcpuState;
use vmm_core::x86::clock::ClockState;
use vmm_core::x86::irqchip::VmState;

fn golden(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
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

/// Reads a section and writes it again.
fn again<S: Section>(reader: &mut StateReader, writer: &mut StateWriter, instance: u32) {
    writer.put(instance, &reader.take::<S>(instance).unwrap()).unwrap();
}

#[test]
fn every_section_of_a_guest_is_read_and_written_again_to_the_same_bytes() {
    ["guest-1.state", "guest-2.state", "guest-3.state"].into_iter().for_each(is_read_and_written_again);
}

fn is_read_and_written_again(name: &str) {
    let bytes = golden(name);
    let mut reader = StateReader::parse(&bytes).unwrap();
    let versions = reader.table().iter().map(|entry| {
        let version = entry.version;
        (entry.id.kind, SectionVersions { oldest: version, newest: version, oldest_written: version })
    });
    let versions: BTreeMap<_, _> = versions.collect();
    let versions: Versions = serde_json::from_value(serde_json::to_value(versions).unwrap()).unwrap();
    let mut writer = StateWriter::new(reader.header().clone()).reading(&versions);
    let ids: Vec<_> = reader.table().iter().map(|entry| entry.id).collect();
    for id in ids {
        let copy = match SectionKind::from_number(id.kind).unwrap() {
            SectionKind::Machine => again::<MachineState>,
            SectionKind::Ram => again::<RamBlockState>,
            SectionKind::Vm => again::<VmState>,
            SectionKind::Clock => again::<ClockState>,
            SectionKind::Vcpu => again::<VcpuState>,
            SectionKind::Serial => again::<SerialState>,
            SectionKind::Chardev => again::<ChardevState>,
            SectionKind::Rtc => again::<RtcState>,
            SectionKind::Pm => again::<PmState>,
            SectionKind::PciBus => again::<PciBusState>,
            SectionKind::PciConfig => again::<PciConfigState>,
            SectionKind::Msix => again::<MsixState>,
            SectionKind::Virtio => again::<VirtioState>,
            SectionKind::RunState => again::<RunStateRecord>,
            SectionKind::RamStamp => again::<RamStamp>,
            kind => panic!("a saved guest has no section {kind}"),
        };
        copy(&mut reader, &mut writer, id.instance);
    }
    reader.finish().unwrap();
    assert!(writer.finish().unwrap() == bytes, "what is written of {name} has changed");
}
