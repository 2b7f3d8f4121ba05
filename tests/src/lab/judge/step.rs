//! What in a step of a report is wrong.

use super::verdict::Verdict;
use crate::lab::net::{NetReport, PING_EVERY};
use crate::lab::report::StepReport;
use crate::lab::scenario::{Margins, Mode, Scenario, Step};
use crate::lab::steps::milliseconds;
use crate::lab::vsock::VsockReport;

/// By how many milliseconds Linux sets its wall clock right, by its host's, each time that it has slept: the ticks that it lost while it
/// booted, some 0.3 s in the lab.
const SET_RIGHT: f64 = 2000.0;

/// What the step before may be the reason of, in milliseconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Before {
    /// For how long the guest stood.
    stood: f64,
    /// Whether packets were lost for a while, as in a reboot.
    reboot: bool,
    /// For how long it was paused. Whoever ran in the guest at that moment is charged for it by its scheduler, and comes after
    /// all others for as long again, or for a multiple of it (docs/limits.md).
    paused: f64,
}

impl Before {
    pub(super) fn of(step: &StepReport) -> Self {
        Self { stood: stands(step), reboot: is_reboot(step), paused: step.paused }
    }
}

pub(super) fn judge(step: &StepReport, before: Before, scenario: &Scenario, verdict: &mut Verdict) {
    let margins = scenario.margins;
    let (name, reboot, stands) = (&step.step, is_reboot(step), stands(step));
    let back = *name == Step::RollBack.to_string();
    if step.total.is_some() && step.paused == 0.0 && step.downtime.is_none() && !reboot && !back {
        verdict.wrong.push(format!("{name}: no downtime was reported"));
    }
    let allowed = stands + margins.gap_ms as f64;
    if step.gap() > allowed {
        verdict.doubtful.push(format!(
            "{name}: a heartbeat was missed for {:.0} ms, allowed are {allowed:.0} ms",
            step.gap()
        ));
    }
    if step.late > allowed {
        verdict
            .doubtful
            .push(format!("{name}: a timer was seen {:.0} ms late, allowed are {allowed:.0} ms", step.late));
    }
    let sleeps = scenario.guest.agent || step.step.parse().is_ok_and(Step::sleeps);
    let set_right = if sleeps { SET_RIGHT } else { 0.0 };
    for (clock, drift, set_right) in [("monotonic", step.drift, 0.0), ("wall", step.wall_drift, set_right)] {
        if drift.abs() > margins.drift_ms as f64 + set_right {
            verdict
                .wrong
                .push(format!("{name}: the guest's {clock} clock went {drift:+.0} ms against the host's"));
        }
    }
    // It may have been sent in the step before.
    let disk_allowed = before.stood + stands + margins.disk_ms as f64;
    if step.disk > disk_allowed {
        verdict.doubtful.push(format!(
            "{name}: a request to a disk took {:.0} ms, allowed are {disk_allowed:.0} ms",
            step.disk
        ));
    }
    if let Some(net) = &step.net {
        network(step, net, before, margins, verdict);
        // Between the queues of a tap there is no order, and it moves a flow to the queue that its answers came by.
        let several = scenario.guest.net.as_ref().is_some_and(|net| net.queues > 1);
        if !several && net.reordered != 0 {
            verdict.wrong.push(format!("{name}: {} answers to pings came out of order", net.reordered));
        }
    }
    if let Some(vsock) = &step.vsock {
        let charged = stands + before.stood + 2.0 * (step.paused + before.paused);
        sockets(step, vsock, charged + margins.net_ms as f64, verdict);
    }
    if step.disconnects != 0 && !reboot {
        verdict.wrong.push(format!("{name}: the serial client lost its connection"));
    }
}

fn network(step: &StepReport, net: &NetReport, before: Before, margins: Margins, verdict: &mut Verdict) {
    let (name, still) = (&step.step, stands(step));
    // TCP waits twice as long before each time that it sends again, so it may notice late that the guest is back: in the
    // next step, perhaps.
    for (what, gap, times) in
        [("answer to a ping", net.gap, 1.0), ("message of the TCP stream", net.stream_gap, 2.0)]
    {
        // It waits for as long again when several in a row were lost.
        let margin = if is_reboot(step) || before.reboot { times } else { 1.0 } * margins.net_ms as f64;
        let allowed = still.max(before.stood) * times + margin;
        if gap > allowed {
            verdict
                .doubtful
                .push(format!("{name}: no {what} came for {gap:.0} ms, allowed are {allowed:.0} ms"));
        }
    }
    // So many may be lost as are sent while the guest stood still, or while it paid for a pause.
    let excused = ((still + step.paused + before.paused) / milliseconds(PING_EVERY)).ceil() as u64;
    if net.lost > excused {
        verdict.doubtful.push(format!("{name}: {} pings were lost, {excused} by the downtime", net.lost));
    }
    if net.repeated != 0 {
        verdict.wrong.push(format!("{name}: {} answers to pings came again", net.repeated));
    }
    if let Some(what) = &net.broken {
        verdict.wrong.push(format!("{name}: the TCP stream broke: {what}"));
    }
}

/// Connections may end with a handover, and with nothing else; new ones are made at once.
fn sockets(step: &StepReport, vsock: &VsockReport, allowed: f64, verdict: &mut Verdict) {
    let name = &step.step;
    // A guest that was paused may still be waited for when the step ends: the next step's gap says for how long.
    if vsock.messages == 0 && step.paused == 0.0 {
        verdict.doubtful.push(format!("{name}: no message came over AF_VSOCK"));
    }
    if vsock.gap > allowed {
        let gap = vsock.gap;
        verdict.doubtful.push(format!(
            "{name}: no message came over AF_VSOCK for {gap:.0} ms, allowed are {allowed:.0} ms"
        ));
    }
    // An exec is two handovers.
    let excused = match step.total {
        None => 0,
        Some(_) if *name == Step::RollBack.to_string() => 0,
        Some(_) if name.ends_with(&Mode::Exec.to_string()) => 2,
        Some(_) => 1,
    };
    if vsock.ended > excused {
        let how = vsock.how.as_deref().unwrap_or("unknown");
        verdict.wrong.push(format!(
            "{name}: {} connections over AF_VSOCK ended, excused are {excused}: {how}",
            vsock.ended
        ));
    }
    if let Some(what) = &vsock.broken {
        verdict.wrong.push(format!("{name}: the stream over AF_VSOCK broke: {what}"));
    }
}

/// For how long a guest stands in a step, in milliseconds. In a reboot, and in a kexec, that is as long as the operator takes to start the
/// new process.
fn stands(step: &StepReport) -> f64 {
    let handed_over = if is_reboot(step) { step.total } else { step.downtime };
    handed_over.unwrap_or(0.0) + step.paused
}

fn is_reboot(step: &StepReport) -> bool {
    step.step.parse().is_ok_and(Step::reboots)
}
