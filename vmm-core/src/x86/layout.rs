//! Where things are in the guest's physical address space, port space and interrupt space.
//!
//! 1. These numbers are what a running guest was told: changing one breaks the handover of guests that live.
//! 2. RAM is one block: its first part from 0 up to [`HOLE_START`], its rest from [`HOLE_END`].
//! 3. Nothing here overlaps; the tests hold it to that.

use std::ops::Range;

use vm_memory::GuestAddress;

/// Where the hole for devices starts: RAM below it, up to 3 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where the hole for devices ends and the rest of the RAM starts: 4 GiB.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First 32-bit MMIO window for PCI BARs.
pub const PCI_MMIO32_START: u64 = HOLE_START;
/// Size of the 32-bit MMIO window in bytes.
pub const PCI_MMIO32_SIZE: u64 = 0x2000_0000;
/// PCI Express configuration space (ECAM), with room for 256 buses of 1 MiB.
pub const PCI_ECAM_START: u64 = 0xe000_0000;
/// Size of the ECAM in bytes: one bus.
pub const PCI_ECAM_SIZE: u64 = 0x10_0000;
/// Where the window for PCI BARs above 4 GiB starts, if the RAM ends below: 256 GiB.
const PCI_MMIO64_START: u64 = 0x40_0000_0000;
/// Size of that window in bytes.
const PCI_MMIO64_SIZE: u64 = 0x20_0000_0000;
/// I/O APIC, 4 KiB.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Local APIC, 4 KiB, the same address for each vCPU.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// One page that KVM uses on Intel hosts without unrestricted guest (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP_START: u64 = 0xfeff_c000;
/// Three pages for the same purpose (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS_START: u64 = 0xfeff_d000;
/// Size of both together in bytes; the guest is told that they are reserved.
pub const KVM_PAGES_SIZE: u64 = 0x4000;
/// The largest firmware ROM in bytes. It ends at 4 GiB.
pub const FIRMWARE_MAX: u64 = 0x100_0000;

/// Global descriptor table of the boot vCPU.
pub const GDT_START: u64 = 0x500;
/// Interrupt descriptor table of the boot vCPU; it has no entries.
pub const IDT_START: u64 = 0x580;
/// PVH start info (`hvm_start_info`), its module list and memory map behind it, up to the zero page.
pub const PVH_INFO_START: u64 = 0x6000;
/// Linux zero page (`boot_params`), 4 KiB.
pub const ZERO_PAGE_START: u64 = 0x7000;
/// Initial stack pointer of the boot vCPU; the stack grows down from here, a page long.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of the boot vCPU: PML4, PDPT and one page directory for each of the lower 4 GiB.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// Size of the page tables in bytes.
pub const PAGE_TABLES_SIZE: u64 = 0x6000;
/// Kernel command line, with its terminating zero.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Most bytes of a command line, with its terminating zero.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// Extended BIOS data area: where conventional memory ends.
pub const EBDA_START: u64 = 0x9_fc00;
/// ACPI tables, in the area that is searched for the RSDP.
pub const ACPI_START: u64 = 0xe_0000;
/// Size of the ACPI area in bytes.
pub const ACPI_SIZE: u64 = 0x2_0000;
/// Where memory for a kernel starts: 1 MiB.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Keyboard controller: data port, and its command port four above.
pub const I8042_PORT: u16 = 0x60;
/// Ports of the keyboard controller. The kernel's PIT answers 0x61 before it gets here.
pub const I8042_PORTS: u16 = 5;
/// CMOS RTC: index port, and its data port one above.
pub const RTC_PORT: u16 = 0x70;
/// Ports of the CMOS RTC.
pub const RTC_PORTS: u16 = 2;
/// Byte of the CMOS RTC that has the alarm's day of the month.
pub const RTC_DAY_ALARM: u8 = 0x7d;
/// Byte of the CMOS RTC that has the alarm's month.
pub const RTC_MONTH_ALARM: u8 = 0x7e;
/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Ports of the first serial port.
pub const COM1_PORTS: u16 = 8;
/// ACPI PM1a event block: status and enable, 16 bits each.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control block, 16 bits.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// Ports of both PM1 blocks.
pub const PM1_PORTS: u16 = 6;
/// ACPI general-purpose event block 0: status and enable, 16 bits each.
pub const GPE0_PORT: u16 = 0x608;
/// Ports of that block.
pub const GPE0_PORTS: u16 = 4;
/// PCI configuration: address port, 32 bits.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// PCI configuration: data port, 32 bits.
pub const PCI_DATA_PORT: u16 = 0xcfc;
/// Where the ports for PCI BARs start; they go on to the end.
pub const PCI_IO_START: u16 = 0xc000;
/// Reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// What resets the machine when it is written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 6;

/// Interrupt line of the first serial port.
pub const COM1_GSI: u32 = 4;
/// The general-purpose event of the first serial port.
pub const COM1_GPE: u8 = 0;
/// Interrupt line of the CMOS RTC.
pub const RTC_GSI: u32 = 8;
/// ACPI's interrupt line (SCI), level triggered, active high.
pub const SCI_GSI: u32 = 9;
/// The first of the four interrupt lines of PCI, level triggered.
pub const PCI_INTX_GSI: u32 = 16;
/// The first interrupt without a pin: those of message-signalled interrupts.
pub const MSI_GSI: u32 = 24;
/// Where the timer's interrupt (ISA IRQ 0) arrives at the I/O APIC.
pub const PIT_GSI: u32 = 2;

/// A part of the RAM block and where the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Guest physical address of its first byte.
    pub guest: GuestAddress,
    /// Size in bytes, never 0.
    pub size: u64,
    /// Where it starts in the RAM block, in bytes.
    pub offset: u64,
}

/// Splits a RAM block of `size` bytes into the parts below and above the hole: one, or two in order of address.
pub fn ram_ranges(size: u64) -> Vec<RamRange> {
    let low = low_ram_end(size);
    [
        RamRange { guest: GuestAddress(0), size: low, offset: 0 },
        RamRange { guest: GuestAddress(HOLE_END), size: size - low, offset: low },
    ]
    .into_iter()
    .filter(|range| range.size > 0)
    .collect()
}

/// Where the RAM below the hole ends, of `size` bytes of RAM.
pub fn low_ram_end(size: u64) -> u64 {
    size.min(HOLE_START)
}

/// The window for PCI BARs above 4 GiB, of a guest with `size` bytes of RAM.
pub fn pci_mmio64(size: u64) -> Range<u64> {
    let start = (HOLE_END + size - low_ram_end(size)).next_multiple_of(PCI_MMIO64_SIZE).max(PCI_MMIO64_START);
    start..start + PCI_MMIO64_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_that_fits_below_the_hole_is_one_range() {
        for size in [1 << 20, GIB, 3 * GIB] {
            assert_eq!(ram_ranges(size), [RamRange { guest: GuestAddress(0), size, offset: 0 }]);
        }
    }

    #[test]
    fn ram_that_does_not_fit_goes_on_above_the_hole() {
        let ranges = ram_ranges(3 * GIB + 4096);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].size, 3 * GIB);
        assert_eq!(ranges[1], RamRange { guest: GuestAddress(4 * GIB), size: 4096, offset: 3 * GIB });
    }

    #[test]
    fn the_high_window_lies_above_the_ram_and_moves_only_for_a_guest_that_reaches_it() {
        assert_eq!(pci_mmio64(GIB), 256 * GIB..384 * GIB);
        assert_eq!(pci_mmio64(255 * GIB), 256 * GIB..384 * GIB);
        assert_eq!(pci_mmio64(256 * GIB), 384 * GIB..512 * GIB);
    }

    #[test]
    fn no_ram_is_no_range() {
        assert!(ram_ranges(0).is_empty());
    }

    #[test]
    fn nothing_in_the_guest_overlaps() {
        let areas = [
            (GDT_START, IDT_START),
            (PVH_INFO_START, ZERO_PAGE_START),
            (ZERO_PAGE_START, ZERO_PAGE_START + 0x1000),
            (BOOT_STACK - 0xff0, BOOT_STACK),
            (PAGE_TABLES_START, PAGE_TABLES_START + PAGE_TABLES_SIZE),
            (CMDLINE_START, CMDLINE_START + CMDLINE_SIZE),
            (EBDA_START, ACPI_START),
            (ACPI_START, ACPI_START + ACPI_SIZE),
            (HIGH_RAM_START, HOLE_START),
            (PCI_MMIO32_START, PCI_MMIO32_START + PCI_MMIO32_SIZE),
            (PCI_ECAM_START, PCI_ECAM_START + PCI_ECAM_SIZE),
            (IOAPIC_START, IOAPIC_START + 0x1000),
            (LAPIC_START, LAPIC_START + 0x1000),
            (KVM_IDENTITY_MAP_START, KVM_TSS_START),
            (KVM_TSS_START, KVM_IDENTITY_MAP_START + KVM_PAGES_SIZE),
            (HOLE_END - FIRMWARE_MAX, HOLE_END),
        ];
        for (first, second) in areas.iter().zip(&areas[1..]) {
            assert!(first.0 < first.1 && first.1 <= second.0, "{first:#x?} {second:#x?}");
        }
    }
}
