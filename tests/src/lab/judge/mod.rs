//! What in a report is wrong.
//!
//! `verdict` is what is found; `step` judges one step, `guest` the guest's own figures, `assigned` the devices of the host's
//! that it had, `outage` what the host's next kernels came to.

mod assigned;
mod guest;
mod outage;
mod step;
mod verdict;

use std::collections::BTreeSet;

pub use self::guest::loads;
use self::step::Before;
pub use self::verdict::Verdict;
use super::assigned::kinds;
use super::peer::PeerReport;
use super::report::Report;
use super::scenario::{Scenario, Step};

/// The class of a guest's messages of its NVMe disks ([`guest_init::kernel_log`]).
const NVME: &str = "nvme";

/// Everything in a report that is not as the scenario wants it.
pub fn judge(scenario: &Scenario, report: &Report) -> Verdict {
    let mut verdict = Verdict::default();
    if !scenario.operations.is_empty() {
        operations(scenario, report, &mut verdict);
        return verdict;
    }
    if !scenario.outage.is_empty() {
        outage::judge(scenario, report, &mut verdict);
        return verdict;
    }
    match (scenario.of_second(), &report.second) {
        (Some(its), Some(second)) => {
            // The devices of both were given back together.
            let given_back = report.given_back.iter().skip(kinds(&scenario.guest).len()).cloned();
            let second = Report { given_back: given_back.collect(), ..(**second).clone() };
            verdict.join("second guest", judge(&its, &second));
        }
        (None, None) => {}
        (wanted, _) => verdict.wrong.push(format!("a second guest was wanted: {}", wanted.is_some())),
    }
    let before = std::iter::once(Before::default()).chain(report.steps.iter().map(Before::of));
    for (step, before) in report.steps.iter().zip(before) {
        step::judge(step, before, scenario, &mut verdict);
    }
    if let Some(status) = &report.status {
        guest::figures(status, scenario, &mut verdict);
        let guest = &scenario.guest;
        for (seen, wanted, who, idle) in [
            (
                &status.net,
                guest.net.is_some(),
                "guest's network",
                "guest answered no message of the TCP stream",
            ),
            (
                &status.vsock,
                guest.vsock,
                "guest's AF_VSOCK server",
                "guest answered no message over AF_VSOCK",
            ),
            (&status.edu, guest.edu.is_some(), "educational device", "educational device made no round"),
            (
                &status.mediated,
                guest.mediated.is_some(),
                "mediated device",
                "mediated device's register was never read",
            ),
        ] {
            if let Some(seen) = seen.as_ref().filter(|seen| seen.errors != 0) {
                let first = seen.first.as_deref().unwrap_or("unknown");
                verdict.wrong.push(format!("the {who} failed {} times, first: {first}", seen.errors));
            }
            if wanted && seen.as_ref().is_none_or(|seen| seen.passes == 0) {
                verdict.wrong.push(format!("the {idle}"));
            }
        }
        guest::disks(status, report.powered_off, scenario, &mut verdict);
    }
    judge_stream(report, &mut verdict);
    if scenario.is_bridged() {
        peer(scenario, &report.peer, &mut verdict);
    }
    judge_messages(report, &mut verdict);
    assigned::judge(scenario, report, &mut verdict);
    verdict
        .wrong
        .extend(report.file_systems.iter().map(|what| format!("a file system is not whole: {what}")));
    match &report.stopped_by {
        Some(reason) => verdict.told(reason.clone()),
        None => judge_completeness(scenario, report, &mut verdict),
    }
    verdict
}

/// What the guest's peer saw: its connection outlives every kernel of the host's.
fn peer(scenario: &Scenario, seen: &[PeerReport], verdict: &mut Verdict) {
    let (first, wanted) =
        (seen.first().map(|seen| &seen.step), scenario.steps.first().map(ToString::to_string));
    if first != wanted.as_ref() {
        verdict.doubtful.push("the peer outside was not connected before the first handover".into());
    }
    for PeerReport { step, net } in seen {
        if let Some(what) = &net.broken {
            verdict.wrong.push(format!("{step}: the TCP connection with the peer outside broke: {what}"));
        }
    }
    match seen.last() {
        Some(last) if last.net.messages > 0 => {}
        // It is not broken: who answers in the guest may be the one that its scheduler has charged for the outage.
        Some(last) => verdict
            .doubtful
            .push(format!("{}: the TCP connection with the peer outside did not go on", last.step)),
        None => verdict.wrong.push("the peer outside was never connected".into()),
    }
}

/// What the operator of a host saw.
fn operations(scenario: &Scenario, report: &Report, verdict: &mut Verdict) {
    for made in &report.operations {
        for wrong in &made.wrong {
            verdict.told(format!("{}: {wrong}", made.operation));
        }
    }
    match &report.stopped_by {
        Some(reason) => verdict.told(reason.clone()),
        None if report.operations.len() != scenario.operations.len() => {
            let (made, wanted) = (report.operations.len(), scenario.operations.len());
            verdict.wrong.push(format!("{made} of {wanted} operations were made"));
        }
        None => {}
    }
}

fn judge_stream(report: &Report, verdict: &mut Verdict) {
    let stream = &report.stream;
    for (count, what) in [(stream.lost, "lost"), (stream.repeated, "repeated"), (stream.damaged, "damaged")] {
        if count != 0 {
            verdict.wrong.push(format!("{count} lines of the serial console were {what}"));
        }
    }
    let pings = &report.pings;
    if pings.wrong != 0 || pings.answered != pings.sent {
        verdict.wrong.push(format!(
            "of {} pings over the serial console {} were answered, {} wrongly",
            pings.sent, pings.answered, pings.wrong
        ));
    }
}

fn judge_messages(report: &Report, verdict: &mut Verdict) {
    let known = report.messages_before.iter().chain(report.messages_without.iter().flatten());
    let known: BTreeSet<&str> = known.map(|message| class(message)).collect();
    // One that is excused may have left more behind than itself.
    let all = report.messages_after.iter().chain(report.messages_without.iter().flatten());
    verdict.of_the_machine |= all.into_iter().any(|message| verdict::is_of_the_machine(message));
    let new = report.messages_after.iter().filter(|message| !known.contains(class(message)));
    for message in new.filter(|message| class(message) != NVME) {
        verdict.told(format!("the guest's kernel says, and does not without a handover: {message}"));
    }
    // A controller that is reset before any handover is out of order, too.
    let nvme = report.messages_before.iter().chain(&report.messages_after);
    for message in nvme.filter(|message| class(message) == NVME) {
        verdict.wrong.push(format!("the guest's kernel says of its disk: {message}"));
    }
}

/// What must be there in a run that nothing stopped.
fn judge_completeness(scenario: &Scenario, report: &Report, verdict: &mut Verdict) {
    let wanted = scenario.steps.iter().flat_map(|step| step.expand()).count();
    if report.steps.len() != wanted {
        verdict.wrong.push(format!("{} of {wanted} steps were made", report.steps.len()));
    }
    let assigned = scenario.assigned().len();
    if scenario.host.is_some() && report.given_back.len() != assigned {
        verdict.wrong.push(format!("{} of {assigned} devices were given back", report.given_back.len()));
    }
    if report.status.is_none() || report.stream.lines == 0 || report.pings.sent == 0 {
        verdict.wrong.push("the guest gave no figures, no lines or no answers".into());
    }
    if scenario.steps.last() == Some(&Step::PowerOff) && !report.powered_off {
        verdict.wrong.push("the guest did not power off".into());
    }
}

/// The class that a message of trouble begins with.
fn class(message: &str) -> &str {
    message.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
