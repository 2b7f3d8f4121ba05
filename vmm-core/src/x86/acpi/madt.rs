//! The interrupt chips: a local APIC for each vCPU, the I/O APIC, and what is not wired one to one.

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{HEADER_SIZE, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::x86::layout;

const REVISION: u8 = 5;
/// `PCAT_COMPAT`: there are two 8259 PICs too.
const FLAGS: u32 = 1;
const IOAPIC_ID: u8 = 0;
const ACTIVE_HIGH: u16 = 1;
const LEVEL_TRIGGERED: u16 = 3 << 2;
/// As the bus has it; ISA: edge triggered, active high.
const AS_BUS: u16 = 0;
const ISA: u8 = 0;
const EVERY_PROCESSOR: u8 = 0xff;

/// An ISA interrupt that arrives elsewhere, or otherwise, than as the same input of the I/O APIC.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct InterruptSourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    irq: u8,
    gsi: U32,
    flags: U16,
}

impl InterruptSourceOverride {
    fn new(irq: u8, gsi: u32, flags: u16) -> Self {
        Self { kind: 2, length: 10, bus: ISA, irq, gsi: gsi.into(), flags: flags.into() }
    }
}

/// Which local interrupt input is the NMI.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor_uid: u8,
    flags: [u8; 2],
    lint: u8,
}

/// The MADT for vCPUs with APIC ids from 0.
pub(super) fn table(cpus: u16) -> Sdt {
    let mut table = Sdt::new(*b"APIC", HEADER_SIZE, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&(layout::LAPIC_START as u32).to_le_bytes());
    table.append_slice(&FLAGS.to_le_bytes());
    for id in 0..cpus as u8 {
        table.append_slice(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).as_bytes());
    }
    table.append_slice(IoApic::new(IOAPIC_ID, layout::IOAPIC_START as u32, 0).as_bytes());
    let timer = InterruptSourceOverride::new(0, layout::PIT_GSI, AS_BUS);
    let sci =
        InterruptSourceOverride::new(layout::SCI_GSI as u8, layout::SCI_GSI, ACTIVE_HIGH | LEVEL_TRIGGERED);
    table.append_slice(timer.as_bytes());
    table.append_slice(sci.as_bytes());
    let nmi = LocalApicNmi {
        kind: 4,
        length: 6,
        processor_uid: EVERY_PROCESSOR,
        flags: AS_BUS.to_le_bytes(),
        lint: 1,
    };
    table.append_slice(nmi.as_bytes());
    table
}
