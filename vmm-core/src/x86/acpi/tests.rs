use super::*;

const RAM: u64 = 1 << 30;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn bytes(memory: &GuestMemoryMmap, at: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// A table by its address, after a look at its signature and its checksum.
fn table(memory: &GuestMemoryMmap, at: u64, signature: [u8; 4]) -> Vec<u8> {
    let size = u32_at(&bytes(memory, at, 8), 4) as usize;
    let table = bytes(memory, at, size);
    assert_eq!(table[..4], signature);
    assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(&signature));
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(table: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(table[at..at + 4].try_into().unwrap())
}

fn u64_at(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

/// XSDT, FADT, MADT, DSDT, found as an operating system finds them.
fn follow(memory: &GuestMemoryMmap, rsdp: u64) -> [Vec<u8>; 4] {
    let rsdp = bytes(memory, rsdp, 36);
    assert_eq!(rsdp[..8], *b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(memory, u64_at(&rsdp, 24), *b"XSDT");
    assert_eq!(xsdt.len(), 36 + 3 * 8);
    let fadt = table(memory, u64_at(&xsdt, 36), *b"FACP");
    let madt = table(memory, u64_at(&xsdt, 44), *b"APIC");
    let dsdt = table(memory, u64_at(&fadt, 140), *b"DSDT");
    [xsdt, fadt, madt, dsdt]
}

#[test]
fn the_chain_of_pointers_leads_from_the_rsdp_to_every_table_and_the_checksums_hold() {
    let memory = memory();
    let rsdp = write(&memory, 2, RAM).unwrap();
    let [_, fadt, _, _] = follow(&memory, rsdp);
    let facs = u64::from(u32_at(&fadt, 36));
    assert_eq!(facs, FACS_START);
    assert_eq!(bytes(&memory, facs, 4), b"FACS");
    assert_eq!(facs % 64, 0);
    assert_eq!(u32_at(&fadt, 56), 0x600);
    assert_eq!(u32_at(&fadt, 64), 0x604);
    assert_eq!((u64_at(&fadt, 120), fadt[128]), (0xcf9, 6));
    assert_eq!((u32_at(&fadt, 80), fadt[92], u64_at(&fadt, 224)), (0x608, 4, 0x608));
    assert_eq!(fadt[106..108], [0x7d, 0x7e]);
    let rtc_is_not_fixed = 1 << 6;
    assert_eq!(u32_at(&fadt, 112) & rtc_is_not_fixed, 0);
}

#[test]
fn each_vcpu_has_its_local_apic_up_to_the_most() {
    for cpus in [1, 2, 64, MAX_CPUS] {
        let memory = memory();
        let rsdp = write(&memory, cpus, RAM).unwrap();
        let [_, _, madt, _] = follow(&memory, rsdp);
        let (mut at, mut ids) = (44, Vec::new());
        while at < madt.len() {
            if madt[at] == 0 {
                assert_eq!(u32_at(&madt, at + 4), 1, "enabled");
                ids.push(u16::from(madt[at + 3]));
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
    }
}

#[test]
fn more_vcpus_than_the_tables_can_name_are_refused() {
    for cpus in [0, MAX_CPUS + 1, u16::MAX] {
        assert!(matches!(write(&memory(), cpus, RAM), Err(AcpiError::Cpus { found }) if found == cpus));
    }
}

#[test]
fn the_same_machine_has_the_same_tables() {
    let [first, second] = [memory(), memory()];
    write(&first, 4, RAM).unwrap();
    write(&second, 4, RAM).unwrap();
    let all = |memory| bytes(memory, layout::ACPI_START, layout::ACPI_SIZE as usize);
    assert_eq!(all(&first), all(&second));
}

#[test]
fn the_dsdt_names_s3_and_s5_and_what_to_write_for_them() {
    let memory = memory();
    let rsdp = write(&memory, 1, RAM).unwrap();
    let [.., dsdt] = follow(&memory, rsdp);
    for (name, sleep_type) in [(b"_S3_", SLEEP_TYPE_S3), (b"_S5_", SLEEP_TYPE_S5)] {
        let at = dsdt.windows(4).position(|bytes| bytes == name).unwrap();
        // Package of four: its length, its count, then a byte by its prefix.
        assert_eq!(dsdt[at + 4..at + 9], [0x12, 0x07, 4, 0x0a, sleep_type]);
    }
}

#[test]
fn the_serial_port_wakes_from_s3_by_the_event_that_notifies_it() {
    let memory = memory();
    let rsdp = write(&memory, 1, RAM).unwrap();
    let [.., dsdt] = follow(&memory, rsdp);
    let after = |name: &[u8; 4]| dsdt.windows(4).position(|bytes| bytes == name).unwrap() + 4;
    // Package of two: its length, its count; event 0 by ZeroOp, sleep state 3 by its prefix.
    let at = after(b"_PRW");
    assert_eq!((dsdt[at..at + 6].to_vec(), layout::COM1_GPE), (vec![0x12, 5, 2, 0, 0x0a, SLEEP_TYPE_S3], 0));
    // No arguments; Notify, a name of two segments, 2.
    let at = after(b"_E00");
    assert_eq!(dsdt[at..at + 3], [0, 0x86, 0x2e]);
    assert_eq!(dsdt[at + 3..at + 13], *b"_SB_COM1\x0a\x02");
}
