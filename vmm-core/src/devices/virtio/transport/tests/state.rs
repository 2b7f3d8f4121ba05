//! A device that moves, and state that is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::{RAM, Rig, SLOT};
use crate::cpr::format::StateReader;
use crate::devices::Device;
use crate::devices::pci::fake;
use crate::devices::pci::{MsixState, PciBusState, PciConfigState};
use crate::devices::virtio::VirtioState;

pub(super) fn saved(rig: &Rig) -> StateReader {
    fake::saved(|out| {
        rig.function().save(out).unwrap();
        rig.bus.save(out).unwrap();
    })
}

fn load(rig: &Rig, mut state: StateReader) -> Result<(), String> {
    rig.function().load(&mut state).map_err(|error| error.to_string())?;
    rig.bus.load(&mut state).map_err(|error| error.to_string())?;
    state.finish().map_err(|error| error.to_string())
}

fn quiesced() -> Rig {
    let rig = Rig::new();
    rig.start();
    rig.offer(0, 0, 100);
    rig.notify(0);
    rig.wait_used(0, 1);
    rig.function().quiesce(Instant::now() + Duration::from_secs(5)).unwrap();
    rig
}

#[test]
fn a_device_goes_on_where_it_was_with_its_doorbells_and_vectors() {
    let source = quiesced();
    source.offer(0, 1, 100);
    let target = Rig::on(Arc::clone(&source.memory));
    load(&target, saved(&source)).unwrap();
    assert_eq!(*target.bells.0.lock().unwrap().keys().next().unwrap(), 0xc000_3000);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((target.get(0x3002), target.sent(0)), (1, 0), "nothing happens before the resume");
    target.function().resume();
    target.wait_used(0, 2);
    target.wait_sent(0, 1);
    target.offer(0, 2, 100);
    target.notify(0);
    target.wait_used(0, 3);
    assert_eq!(target.status(), 15);
}

#[test]
fn saved_loaded_and_saved_again_is_the_same() {
    let source = quiesced();
    let target = Rig::on(Arc::clone(&source.memory));
    load(&target, saved(&source)).unwrap();
    let sections = |rig: &Rig| {
        let mut state = saved(rig);
        let slot = SLOT.into();
        let config: PciConfigState = state.take(slot).unwrap();
        let virtio: VirtioState = state.take(slot).unwrap();
        let msix: MsixState = state.take(slot).unwrap();
        let bus: PciBusState = state.take(0).unwrap();
        (config, virtio, msix, bus)
    };
    assert_eq!(sections(&target), sections(&source));
}

#[test]
fn state_that_a_device_cannot_be_in_is_refused_and_named() {
    let source = quiesced();
    type Spoil = fn(&mut VirtioState);
    let spoils: [(Spoil, &str); 10] = [
        (|s| s.offered |= 1 << 50, "features 0x4010130000001 offered"),
        (|s| s.features |= 2, "features 0x100000002 agreed on"),
        (|s| s.features = 0, "features 0x0 agreed on"),
        (|s| s.status = 0x45, "device status 0x45"),
        (|s| s.status = 7, "device status 0x07"),
        (|s| s.queues.truncate(1), "1 queues"),
        (|s| s.queues[0].size = 12, "queue 0 of size 12"),
        (|s| s.queues[1].size = 32, "queue 1 of size 32"),
        (|s| s.queues[0].used = RAM - 8, "queue 0: its rings at 0x1000, 0x2000 and 0xffff8"),
        (|s| s.queues[0].vector = 3, "MSI-X vector 3"),
    ];
    for (spoil, named) in spoils {
        let mut state = saved(&source);
        let slot = SLOT.into();
        let config: PciConfigState = state.take(slot).unwrap();
        let msix: MsixState = state.take(slot).unwrap();
        let bus: PciBusState = state.take(0).unwrap();
        let mut virtio: VirtioState = state.take(slot).unwrap();
        spoil(&mut virtio);
        let state = fake::saved(|out| {
            out.put(slot, &config).unwrap();
            out.put(slot, &msix).unwrap();
            out.put(slot, &virtio).unwrap();
            out.put(0, &bus).unwrap();
        });
        let error = load(&Rig::on(Arc::clone(&source.memory)), state).unwrap_err();
        assert!(error.contains("echo") && error.contains(named), "'{error}' does not say '{named}'");
    }
}
