//! What is loaded, and what is refused.

use super::fake::{bus, saved};
use crate::devices::Device;
use crate::devices::pci::*;
use crate::x86::layout::PCI_ECAM_START;

fn command(bus: &PciBus, slot: u64, value: u8) {
    assert!(bus.write_memory(PCI_ECAM_START + (slot << 15) + 4, &[value]));
}

fn load(bus: &PciBus, state: &mut crate::cpr::format::StateReader) -> Result<(), String> {
    let all = bus.functions().map(|function| &**function as &dyn Device).chain([bus as &dyn Device]);
    for device in all {
        device.load(state).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn states(bus: &PciBus) -> (PciBusState, Vec<PciConfigState>) {
    let mut state = saved(|out| {
        bus.save(out).unwrap();
        bus.functions().for_each(|function| function.save(out).unwrap());
    });
    let configs = [0, 1, 2].map(|slot| state.take(slot).unwrap());
    (state.take(0).unwrap(), configs.into())
}

fn reload(bus_state: &PciBusState, configs: &[PciConfigState]) -> Result<PciBus, String> {
    let mut state = saved(|out| {
        out.put(0, bus_state).unwrap();
        for (slot, config) in (0..).zip(configs) {
            out.put(slot, config).unwrap();
        }
    });
    let (target, _) = bus(&[1, 2]);
    load(&target, &mut state)?;
    state.finish().unwrap();
    Ok(target)
}

/// A bus of two functions, both enabled, the first moved.
fn source() -> PciBus {
    let (source, _) = bus(&[1, 2]);
    source.write_memory(PCI_ECAM_START + (1 << 15) + 0x10, &0xd000_0000_u32.to_le_bytes());
    command(&source, 1, 7);
    command(&source, 2, 7);
    source.write_ports(0xcf8, &0x8000_1004_u32.to_le_bytes());
    source
}

#[test]
fn a_bus_is_the_same_after_a_load_and_its_bars_decode_where_they_did() {
    let (bus_state, configs) = states(&source());
    assert_eq!(bus_state.ranges.len(), 6);
    let target = reload(&bus_state, &configs).unwrap();
    assert_eq!(states(&target), (bus_state, configs));
    assert!(target.read_memory(0xd000_0ffc, &mut [0; 4]));
    assert!(!target.read_memory(0xc000_0000, &mut [0; 4]));
    let mut data = [0; 4];
    target.read_ports(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_1004);
}

#[test]
fn state_of_a_guest_that_had_no_pci_is_loaded() {
    let (target, _) = bus(&[]);
    load(&target, &mut saved(|_| {})).unwrap();
}

#[test]
fn a_bar_that_decodes_where_it_cannot_is_refused_and_named() {
    let (good, configs) = states(&source());
    let with = |slot: u8, bar: u8, address: u64| {
        let mut state = good.clone();
        let range = state.ranges.iter_mut().find(|range| (range.slot, range.bar) == (slot, bar));
        range.unwrap().address = address;
        state
    };
    let change = |slot: usize, register: usize, value: u32| {
        let mut configs = configs.clone();
        configs[slot].registers[register..register + 4].copy_from_slice(&value.to_le_bytes());
        configs
    };
    let named = |error: Result<PciBus, String>, words: &[&str]| {
        let error = error.err().unwrap();
        for word in words {
            assert!(error.contains(word), "'{error}' does not say '{word}'");
        }
    };
    named(reload(&with(1, 0, 0xd000_1000), &configs), &["fake: ", "BAR 0 of PCI slot 1", "registers"]);
    let outside = change(1, 0x10, 0xfee0_0000);
    named(reload(&with(1, 0, 0xfee0_0000), &outside), &["BAR 0 of PCI slot 1", "0xfee00000", "outside"]);
    let over = change(2, 0x10, 0xd000_0000);
    named(reload(&with(2, 0, 0xd000_0000), &over), &["BAR 0 of PCI slot 1", "where another BAR does"]);
    let disabled = change(1, 4, 0);
    named(reload(&good, &disabled), &["PCI slot 1", "registers do not say"]);
    for (slot, bar, words) in [(9, 0, "where no function is"), (1, 1, "does not have"), (200, 0, "slot 200")]
    {
        let mut state = good.clone();
        state.ranges.push(PciRangeState { slot, bar, address: 0xd000_0000 });
        named(reload(&state, &configs), &[words]);
    }
    let mut twice = good.clone();
    twice.ranges.push(good.ranges[0]);
    named(reload(&twice, &configs), &["a second time"]);
}

#[test]
fn registers_that_cannot_be_so_are_refused_and_named() {
    let (good, configs) = states(&source());
    let mut other = configs.clone();
    other[1].registers[2] ^= 1;
    let error = reload(&good, &other).err().unwrap();
    assert!(error.contains("PCI register 0x02 is 0x79; expected 0x78"), "{error}");
    let mut short = configs.clone();
    short[2].registers.pop();
    let error = reload(&good, &short).err().unwrap();
    assert!(error.contains("255 bytes"), "{error}");
    let odd = PciBusState { address: 3, ..good.clone() };
    assert!(reload(&odd, &configs).err().unwrap().contains("address port 0x3"));
    let error = reload(&good, &configs[..2]).err().unwrap();
    assert!(error.contains("pci-config #2"), "{error}");
}
