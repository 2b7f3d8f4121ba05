//! The new process's side: a guest is found where it waits, claimed, and entered.

use std::sync::Arc;

use super::copy::{Arrival, Copied, CopyError, Lost};
use super::error::{RebootError, Refusal};
use super::found::{Found, FoundRam};
use super::outage;
use super::place::Place;
use crate::config::MachineConfig;
use crate::cpr::blockers::Blocker;
use crate::cpr::report::{Report, Stopwatch};
use crate::machine::{Incoming, Machine, Overrides};
use crate::priority::Precedence;
use crate::x86::clock::ClockState;

/// Loads a guest from where it waits, and enters it; says for how long it stood.
pub fn load(place: &Place, overrides: &Overrides) -> Result<(Machine, Report), RebootError> {
    let mut watch = Stopwatch::start();
    let precedence = Precedence::take();
    let found = Found::find(place, overrides)?;
    watch.lap("target: build");
    take(place, found, overrides, precedence, watch).map_err(|why| why.of(place))
}

/// Loads, claims and enters a guest that was found.
fn take(
    place: &Place,
    found: Found,
    overrides: &Overrides,
    mut precedence: Option<Precedence>,
    mut watch: Stopwatch,
) -> Result<(Machine, Report), Refusal> {
    let Found { mut reader, state_bytes, mut incoming, stamp, ram } = found;
    (overrides.admit)(incoming.config())?;
    let arrival = match &ram {
        FoundRam::Copied(copied) => {
            // That takes all processors, for as long as there is RAM.
            drop(precedence.take());
            let arrival = fill(place, &mut incoming, copied, overrides.lazy.as_ref())?;
            if arrival.is_none() {
                watch.lap("fill RAM");
            }
            arrival
        }
        FoundRam::InPlace | FoundRam::Preserved { .. } => None,
    };
    let clock: ClockState = reader.peek(0)?;
    let loaded = incoming
        .load(&mut reader, &mut watch)
        // What RAM that cannot be had did to the load is not the reason.
        .map_err(|why| match arrival.as_ref().and_then(|arrival| arrival.refused()) {
            Some(error) => Refusal::Copy(error),
            None => why.into(),
        })?;
    reader.finish()?;
    overrides.entrance.begin()?;
    if let Some(arrival) = &arrival {
        arrival.claim()?;
    }
    // The point of no return: this can be loaded by nobody after this.
    let claim = stamp.ownership().claim()?;
    let persisted = match &ram {
        FoundRam::Copied(copied) => copied.file().sync_data(),
        FoundRam::InPlace => stamp.persist(),
        FoundRam::Preserved { .. } => Ok(()),
    };
    if let Err(error) = persisted {
        // Who finds the file later could find it as if nobody had loaded it.
        tracing::error!("{place}: that it was loaded may not be on disk: {error}; remove the file");
    }
    let machine = loaded.enter(claim, &mut watch);
    drop(precedence);
    if let Some(arrival) = arrival {
        arrival.go();
    }
    let report = outage::report(&machine, &clock, &watch, state_bytes, matches!(ram, FoundRam::Copied(_)));
    // Its keeper finds that out, and ends.
    drop(ram);
    Ok((machine, report))
}

/// Fills the RAM, or has it come in while the guest runs, where that is wanted and can be.
fn fill(
    place: &Place,
    incoming: &mut Incoming,
    copied: &Arc<Copied>,
    lazy: Option<&Lost>,
) -> Result<Option<Arc<Arrival>>, CopyError> {
    let Some(block) = incoming.ram_block() else { return Ok(None) };
    let Some(lost) = lazy else { return copied.fill(block).map(|()| None) };
    match incoming.missing_pages() {
        Ok(pages) => {
            let (path, lost) = (place.to_string(), Arc::clone(lost));
            let named: Lost = Arc::new(move |why| {
                tracing::error!("{path}: {why}; the guest has run without it, and cannot go on");
                lost(why);
            });
            let arrival = Arc::new(Arrival::begin(Arc::clone(copied), pages, block.size(), named)?);
            incoming.fill_by(Arc::clone(&arrival));
            Ok(Some(arrival))
        }
        Err(why) => {
            tracing::warn!("{place}: all of the RAM is read before the guest runs: {why}");
            copied.fill(block).map(|()| None)
        }
    }
}

/// What is in the way of loading a guest here. Touches nothing but RAM that is made for it, in memory; a guest that the kernel has
/// kept has a keeper afterwards.
pub fn check(place: &Place, set: &[String]) -> Vec<Blocker> {
    // The serial port's back end is not opened: that could replace a socket or make a file.
    let set = set.iter().cloned().chain(["serial=null".to_owned()]).collect();
    let (events, admit) = (Arc::new(drop), Arc::new(|_: &MachineConfig| Ok(())));
    let entrance = Arc::default();
    let overrides = Overrides { set, paused: true, events, admit, trial: true, lazy: None, entrance };
    match Found::find(place, &overrides).and_then(|found| found.verify().map_err(|why| why.of(place))) {
        Ok(()) => Vec::new(),
        Err(RebootError::Refused { source: Refusal::Load(why), .. }) if !why.blockers().is_empty() => {
            why.blockers()
        }
        Err(error) => vec![Blocker::new("state", error.to_string())],
    }
}
