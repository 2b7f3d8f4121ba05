//! The logic of ownership: one word, and the steps between its states.
//!
//! The low two bits are the state. The others count offers, so that a claim made for one offer cannot take a later
//! one: between them the guest has run on.

use std::sync::atomic::{AtomicU32, Ordering};

use super::OwnershipError;

/// Whose the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The source's.
    Source,
    /// Nobody's: the target may claim it, the source may take it back.
    Offered,
    /// The target's.
    Target,
}

/// An atomic word: the processor's, or the model checker's.
pub(super) trait Word {
    /// Reads it, as [`LOAD`] says.
    fn load(&self) -> u32;
    /// Writes `to` if it holds `from`, as [`SWAP`] says; otherwise gives what it holds.
    fn swap(&self, from: u32, to: u32) -> Result<(), u32>;
}

/// How a word is read: what was written before it came to hold its value is seen after.
pub(super) const LOAD: Ordering = Ordering::Acquire;

/// How a word is swapped: as [`LOAD`], and what was written before is seen by who reads the new value.
pub(super) const SWAP: Ordering = Ordering::AcqRel;

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        self.load(LOAD)
    }

    fn swap(&self, from: u32, to: u32) -> Result<(), u32> {
        self.compare_exchange(from, to, SWAP, LOAD).map(drop)
    }
}

const STATE_BITS: u32 = 2;

/// The word's value in a state of an offer.
fn value(state: State, offer: u32) -> u32 {
    let state = match state {
        State::Source => 1,
        State::Offered => 2,
        State::Target => 3,
    };
    offer << STATE_BITS | state
}

/// State and offer of a value.
fn split(value: u32) -> Result<(State, u32), OwnershipError> {
    let state = match value & ((1 << STATE_BITS) - 1) {
        1 => State::Source,
        2 => State::Offered,
        3 => State::Target,
        _ => return Err(OwnershipError::Corrupt(value)),
    };
    Ok((state, value >> STATE_BITS))
}

/// Why a step of the source's is not open in the word's present state.
fn source_error(value: u32) -> OwnershipError {
    match split(value) {
        Ok((State::Source, _)) => OwnershipError::NotOffered,
        Ok((State::Offered, _)) => OwnershipError::Offered,
        Ok((State::Target, _)) => OwnershipError::ClaimedByTarget,
        Err(corrupt) => corrupt,
    }
}

/// Whose the guest is.
pub(super) fn state(word: &impl Word) -> Result<State, OwnershipError> {
    Ok(split(word.load())?.0)
}

/// The offer that stands, or that would be the next.
pub(super) fn current_offer(word: &impl Word) -> Result<u32, OwnershipError> {
    Ok(split(word.load())?.1)
}

/// Source to offered.
pub(super) fn offer(word: &impl Word) -> Result<(), OwnershipError> {
    let found = word.load();
    match split(found)? {
        (State::Source, offer) => word.swap(found, value(State::Offered, offer)).map_err(source_error),
        _ => Err(source_error(found)),
    }
}

/// Offered to source, where the next offer will be another.
pub(super) fn take_back(word: &impl Word) -> Result<(), OwnershipError> {
    let found = word.load();
    match split(found)? {
        (State::Offered, offer) => {
            word.swap(found, value(State::Source, offer.wrapping_add(1))).map_err(source_error)
        }
        _ => Err(source_error(found)),
    }
}

/// Source to source.
pub(super) fn cancel(word: &impl Word) -> Result<(), OwnershipError> {
    let found = word.load();
    match split(found)? {
        (State::Source, _) => word.swap(found, found).map_err(source_error),
        _ => Err(source_error(found)),
    }
}

/// Offered to target, if it is this offer.
pub(super) fn claim(word: &impl Word, offer: u32) -> Result<(), OwnershipError> {
    let claimed = word.swap(value(State::Offered, offer), value(State::Target, offer));
    claimed.map_err(|found| why_not(found, offer))
}

/// Whether it is offered to the target by this offer.
pub(super) fn check_offer(word: &impl Word, offer: u32) -> Result<(), OwnershipError> {
    let found = word.load();
    if found == value(State::Offered, offer) { Ok(()) } else { Err(why_not(found, offer)) }
}

/// Why this offer cannot be claimed from what was found.
fn why_not(found: u32, offer: u32) -> OwnershipError {
    match split(found) {
        Ok((State::Target, _)) => OwnershipError::ClaimedByTarget,
        Ok((State::Source, now)) if now == offer => OwnershipError::NotOffered,
        Ok(_) => OwnershipError::TakenBack,
        Err(corrupt) => corrupt,
    }
}

/// Whatever it is to source. Only for who owns the guest: no other step is then open to anybody.
pub(super) fn renew(word: &impl Word) {
    let mut found = word.load();
    while let Err(now) = word.swap(found, value(State::Source, (found >> STATE_BITS).wrapping_add(1))) {
        found = now;
    }
}
