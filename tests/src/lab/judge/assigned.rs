//! What in a report is wrong with assigned devices.

use vmm_core::config::ByteSize;

use super::verdict::Verdict;
use crate::lab::assigned;
use crate::lab::report::Report;
use crate::lab::scenario::Scenario;

/// Descriptors of clients of the monitor that may be there just then.
const CLIENTS: u64 = 2;

pub(super) fn judge(scenario: &Scenario, report: &Report, verdict: &mut Verdict) {
    for message in &report.host_messages {
        verdict.wrong.push(format!("the host's kernel says: {message}"));
    }
    accounts(scenario, report, verdict);
    roms(scenario, report, verdict);
    let guests = std::iter::once(&scenario.guest).chain(&scenario.second);
    let disks = guests.flat_map(|guest| &guest.assigned).map(|disk| disk.size_mib << 20);
    for (back, size) in report.given_back.iter().zip(disks.chain(std::iter::repeat(0))) {
        let device = &back.device;
        if let Some(what) = &back.wrong {
            verdict.wrong.push(format!("{device} was of no use to the host after the guest's end: {what}"));
        } else if back.read != size {
            verdict.wrong.push(format!("the host read {} bytes of {device}, which has {size}", back.read));
        }
    }
}

/// Nothing is left behind by a handover, and what is pinned for devices of a type 1 container counts as the owner's. IOMMUFD does
/// not count what it pins for a process that may pin as much as it likes.
fn accounts(scenario: &Scenario, report: &Report, verdict: &mut Verdict) {
    let handed_over = report.steps.iter().filter(|step| step.total.is_some());
    let mut counts = handed_over.filter_map(|step| step.descriptors);
    if let Some(first) = counts.next()
        && let Some(more) = counts.find(|count| *count > first + CLIENTS)
    {
        verdict.wrong.push(format!(
            "{first} descriptors were open after the first handover, and {more} after another"
        ));
    }
    let Ok(ByteSize(ram)) = scenario.guest.memory.parse() else { return };
    if assigned::interfaces(&scenario.guest).any(|iommufd| iommufd == Some(false)) {
        let away = report.steps.iter().filter(|step| step.locked.is_some_and(|locked| locked < ram >> 10));
        for step in away {
            let locked = step.locked.unwrap_or_default();
            verdict
                .wrong
                .push(format!("{}: {locked} KiB are locked by the owner, and not all of its RAM", step.step));
        }
    }
}

/// What the host read in a device's ROM the guest has read, too.
fn roms(scenario: &Scenario, report: &Report, verdict: &mut Verdict) {
    let Some(status) = &report.status else { return };
    let roms: Vec<_> = report.given_back.iter().filter_map(|back| back.rom.as_ref()).collect();
    for rom in roms.iter().filter(|rom| !status.roms.contains(rom)) {
        verdict.wrong.push(format!("the host read {rom:?}, and the guest {:?}", status.roms));
    }
    let card = scenario.guest.net.as_ref().is_some_and(|net| net.card.is_some());
    if card && scenario.host.is_some() && roms.is_empty() {
        verdict.wrong.push("the host read no ROM of the network card".into());
    }
}
