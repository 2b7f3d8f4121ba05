//! The fixed hardware: PM1 registers, general-purpose events, reset register, SCI.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::x86::layout;

/// `IAPC_BOOT_ARCH`: there are ISA devices; do not look for VGA. No keyboard controller is announced: ours only resets.
const LEGACY_DEVICES: u16 = 1;
const VGA_NOT_PRESENT: u16 = 1 << 2;

const PM1_EVENT_SIZE: u8 = 4;
const PM1_CONTROL_SIZE: u8 = 2;
const GPE0_SIZE: u8 = layout::GPE0_PORTS as u8;
/// Where the CMOS RTC keeps the century.
const RTC_CENTURY: u8 = 0x32;
/// C2 and C3 latencies that say that there is none (more than 100 and 1000 µs).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The FADT. Power button and alarm: fixed. Sleep button: none.
pub(super) fn table(dsdt: u64, facs: u64) -> FADT {
    let io =
        |port: u16, bytes: u8, access| GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs as u32)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    // Both: ACPICA takes the 64-bit one, others may know only the older.
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = (layout::SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = PM1_EVENT_SIZE;
    fadt.x_pm1a_evt_blk = io(layout::PM1_EVENT_PORT, PM1_EVENT_SIZE, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = PM1_CONTROL_SIZE;
    fadt.x_pm1a_cnt_blk = io(layout::PM1_CONTROL_PORT, PM1_CONTROL_SIZE, AccessSize::WordAccess);
    fadt.gpe0_blk = u32::from(layout::GPE0_PORT).into();
    fadt.gpe0_blk_len = GPE0_SIZE;
    fadt.x_gpe0_blk = io(layout::GPE0_PORT, GPE0_SIZE, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.day_alrm = layout::RTC_DAY_ALARM;
    fadt.mon_alrm = layout::RTC_MONTH_ALARM;
    fadt.century = RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = io(layout::RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.finalize()
}
