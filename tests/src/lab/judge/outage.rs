//! Judges what outages were made of.

use super::Verdict;
use crate::lab::outage::OutageReport;
use crate::lab::report::Report;
use crate::lab::scenario::Scenario;

/// Whether all guests went through every kernel, and what our own part of it came to. That is a time, and so another run may tell.
pub(super) fn judge(scenario: &Scenario, report: &Report, verdict: &mut Verdict) {
    if let Some(reason) = &report.stopped_by {
        verdict.told(reason.clone());
        return;
    }
    let seen: Vec<_> = report.outage.iter().map(|outage| outage.guests).collect();
    if seen != scenario.outage {
        verdict
            .wrong
            .push(format!("kexecs were to be with {:?} guests, and were with {seen:?}", scenario.outage));
    }
    let ms = |us: u64| us / 1000;
    if let [few, .., many] = &report.outage[..]
        && for_each(many) >= for_each(few)
    {
        verdict.doubtful.push(format!(
            "our own part of the outage does not grow less than linearly: {} ms with {} guests, {} ms with {}",
            ms(few.own()),
            few.guests,
            ms(many.own()),
            many.guests
        ));
    }
    // With more of them an emulated processor spends as much on them as on a kernel that has little else to do.
    if let Some(few) = report.outage.first().filter(|few| few.own() * 2 >= few.whole()) {
        verdict.doubtful.push(format!(
            "our own part of the outage with {} guests is {} of {} ms",
            few.guests,
            ms(few.own()),
            ms(few.whole())
        ));
    }
}

/// Our own part of it for each guest.
fn for_each(outage: &OutageReport) -> u64 {
    outage.own() / u64::from(outage.guests.max(1))
}

#[cfg(test)]
mod tests {
    use vmm_core::cpr::report::PhaseTime;

    use super::*;

    fn outage(guests: u16, times: [u64; 5]) -> OutageReport {
        let phases = times.map(|ms| PhaseTime { phase: String::new(), us: ms * 1000 });
        OutageReport { guests, phases: phases.into(), saves: Vec::new(), loads: Vec::new(), stood: [0.0; 2] }
    }

    fn judged(outage: Vec<OutageReport>, stopped_by: Option<String>) -> Verdict {
        let scenario: Scenario = toml::from_str(
            "about = 'x'\nbound = 1\noutage = [1, 4]\n[guest]\nkernel = 'lab'\ncpus = 1\nmemory = '32M'\nlive-update = true",
        )
        .unwrap();
        super::super::judge(&scenario, &Report { outage, stopped_by, ..Report::default() })
    }

    #[test]
    fn our_own_part_is_the_smaller_one_and_grows_less_than_the_guests_do() {
        let few = outage(1, [200, 2000, 3000, 50, 300]);
        assert!(judged(vec![few.clone(), outage(4, [500, 2000, 3000, 50, 1400])], None).is_passed());
        let linear = judged(vec![few.clone(), outage(4, [800, 2000, 3000, 50, 1200])], None);
        assert_eq!((linear.wrong.len(), linear.doubtful.len()), (0, 1), "{linear:?}");
        let large =
            judged(vec![outage(1, [200, 100, 200, 50, 300]), outage(4, [500, 2000, 3000, 50, 1400])], None);
        assert!(large.doubtful[0].ends_with("with 1 guests is 500 of 850 ms"), "{large:?}");
    }

    #[test]
    fn a_kexec_that_was_not_made_is_missed() {
        let few = outage(1, [200, 2000, 3000, 50, 300]);
        assert_eq!(judged(vec![few.clone()], None).wrong.len(), 1);
        let lost = judged(vec![few], Some("vm3 had counted to 9, and counts from 1".into()));
        assert_eq!(lost.wrong, ["vm3 had counted to 9, and counts from 1"]);
    }
}
