//! State that was changed on its way.

use super::actions::run;
use super::source::Source;
use super::subject::Kind;
use crate::cpr::Mode;
use crate::cpr::format::{HeaderInfo, StateReader, StateWriter, Versions, inspect, mend};
use crate::devices::chardev::ChardevState;
use crate::devices::pci::{MsixState, PciBusState};
use crate::devices::virtio::VirtioState;
use crate::devices::virtio::console::ConsoleState;

/// The devices whose state is changed.
const KINDS: [Kind; 7] =
    [Kind::Rng, Kind::Console, Kind::Block, Kind::Balloon, Kind::Net, Kind::VhostNet, Kind::Vsock];

/// Reads bytes as saved state: as they are, and with checksums that are right.
pub fn read_state(bytes: &[u8]) {
    let mut mended = bytes.to_vec();
    mend(&mut mended);
    for bytes in [bytes, &mended] {
        // It may be anything; it must not panic, nor take memory by a length that it names.
        let _ = format!("{:?}", inspect(bytes, &Versions::default()));
        let Ok(mut state) = StateReader::parse(bytes) else { continue };
        let instance = state.table().first().map_or(0, |entry| entry.id.instance);
        let _ = (state.take::<ConsoleState>(instance), state.take::<VirtioState>(instance));
        let _ = (state.take::<MsixState>(instance), state.take::<PciBusState>(instance));
        let _ = (state.take::<ChardevState>(instance), state.finish());
    }
}

/// Lets a driver do to a device what the bytes say, saves it, changes that as the bytes say, with checksums that are right,
/// and loads it: it is refused by a name, or the machine lives.
pub fn load_changed(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let (changes, actions) = bytes.split_at(bytes.len().min(24));
    let machine = run(kind, &mut Source(actions));
    machine.stop();
    let good = machine.save();
    let state = changed(&good, &mut Source(changes));
    let target = machine.successor();
    match target.load(&state) {
        Ok(()) => {
            target.resume();
            target.turn();
            target.judge();
        }
        Err(why) => {
            let named = ["subject", "witness", "pci", "msix", "virtio", "chardev"];
            assert!(named.iter().any(|name| why.contains(name)), "'{why}' names nothing");
        }
    }
}

/// State with some bytes of some payloads changed, dropped or added.
fn changed(good: &[u8], source: &mut Source) -> Vec<u8> {
    let state = StateReader::parse(good).unwrap();
    let header = HeaderInfo { mode: Mode::CprTransfer, ..state.header().clone() };
    let mut sections: Vec<_> = state
        .table()
        .iter()
        .map(|entry| (entry.id, entry.version, good[entry.range.clone()].to_vec()))
        .collect();
    while !source.is_empty() {
        let section = usize::from(source.u8()) % sections.len();
        let (_, version, payload) = &mut sections[section];
        let at = usize::from(source.u16()) % (payload.len() + 1);
        match source.below(16) {
            0 => *version = source.u8().into(),
            1 => payload.truncate(at),
            2 => payload.insert(at, source.u8()),
            3..8 => payload.iter_mut().skip(at).take(1).for_each(|byte| *byte = source.u8()),
            _ => payload.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << source.below(8)),
        }
    }
    let mut out = StateWriter::new(header);
    for (id, version, payload) in sections {
        out.put_raw(id, version, &payload);
    }
    out.finish().unwrap()
}
