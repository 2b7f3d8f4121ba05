//! What the machine tells an operating system about itself: the ACPI tables (ACPI 6.5).
//!
//! 1. The tables are a function of the numbers of vCPUs and of bytes of RAM and of [`layout`] alone: the same machine, the
//!    same bytes.
//! 2. They are written once, at a cold boot of a kernel, to the area that is searched for the RSDP; a firmware brings
//!    its own.
//! 3. There is no SMI port: the machine is in ACPI mode from the start.

mod dsdt;
mod fadt;
mod madt;
mod pci;
mod wake;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

pub use self::wake::{VectorError, waking_vector};
use super::layout;
use crate::config::MAX_CPUS;

/// `SLP_TYP` of the PM1 control register for S3, sleep with the RAM powered.
pub const SLEEP_TYPE_S3: u8 = 3;
/// `SLP_TYP` of the PM1 control register for S5, soft off.
pub const SLEEP_TYPE_S5: u8 = 5;

const OEM_ID: [u8; 6] = *b"CPRVMM";
const OEM_TABLE_ID: [u8; 8] = *b"CPRVMM  ";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER_SIZE: u32 = 36;
/// What the strictest table (FACS) wants.
const ALIGNMENT: u64 = 64;
/// Where the FACS is: behind the RSDP, in every guest that was booted with a kernel.
const FACS_START: u64 = layout::ACPI_START + ALIGNMENT;

/// Why the tables cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// No table can name that many vCPUs.
    #[error("ACPI tables for {found} vCPUs; expected 1 to {MAX_CPUS}")]
    Cpus {
        /// How many were asked for.
        found: u16,
    },
    /// They do not fit their area.
    #[error("ACPI tables end at {end:#x}; their area ends at {max:#x}")]
    TooLarge {
        /// Where they would end.
        end: u64,
        /// Where they may end.
        max: u64,
    },
    /// Their area is not guest memory.
    #[error("writing ACPI tables to guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Writes the tables for `cpus` vCPUs, with APIC ids from 0, and `ram_size` bytes of RAM, and gives the address of the
/// RSDP.
pub fn write(memory: &GuestMemoryMmap, cpus: u16, ram_size: u64) -> Result<u64, AcpiError> {
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(AcpiError::Cpus { found: cpus });
    }
    let rsdp_address = layout::ACPI_START;
    let mut area = Area { memory, next: FACS_START };
    let facs = area.add(&FACS::new())?;
    let dsdt = area.add(&dsdt::table(ram_size))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(area.add(&fadt::table(dsdt, facs))?);
    xsdt.add_entry(area.add(&madt::table(cpus))?);
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM_START, 0, 0, 0);
    xsdt.add_entry(area.add(&mcfg)?);
    let xsdt = area.add(&xsdt)?;
    Area { memory, next: rsdp_address }.add(&Rsdp::new(OEM_ID, xsdt))?;
    Ok(rsdp_address)
}

/// The area for the tables, filled from below.
struct Area<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Area<'_> {
    /// Writes a table and gives its address.
    fn add(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let (start, max) = (self.next, layout::ACPI_START + layout::ACPI_SIZE);
        let end = start + bytes.len() as u64;
        if end > max {
            return Err(AcpiError::TooLarge { end, max });
        }
        self.memory.write_slice(&bytes, GuestAddress(start))?;
        self.next = end.next_multiple_of(ALIGNMENT);
        Ok(start)
    }
}

#[cfg(test)]
mod tests;
