//! Where BARs decode: the map that every access to memory or ports goes through.

use std::collections::BTreeMap;

use super::bar::{BarKind, BarSpec};

/// A BAR that decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded {
    pub slot: u8,
    pub bar: usize,
    pub size: u64,
}

/// What an access hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit {
    pub slot: u8,
    pub bar: usize,
    pub offset: u64,
}

/// Memory or ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Memory,
    Ports,
}

impl From<BarKind> for Space {
    fn from(kind: BarKind) -> Self {
        if kind == BarKind::Io { Self::Ports } else { Self::Memory }
    }
}

/// The BARs that decode, none over another.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    memory: BTreeMap<u64, Decoded>,
    ports: BTreeMap<u64, Decoded>,
}

impl Ranges {
    fn of(&self, space: Space) -> &BTreeMap<u64, Decoded> {
        match space {
            Space::Memory => &self.memory,
            Space::Ports => &self.ports,
        }
    }

    fn of_mut(&mut self, space: Space) -> &mut BTreeMap<u64, Decoded> {
        match space {
            Space::Memory => &mut self.memory,
            Space::Ports => &mut self.ports,
        }
    }

    /// What is hit by an access of `length` bytes, all of them in one BAR.
    pub fn find(&self, space: Space, address: u64, length: usize) -> Option<Hit> {
        let (start, at) = self.of(space).range(..=address).next_back()?;
        let offset = address - start;
        let inside = offset.checked_add(length as u64).is_some_and(|end| end <= at.size);
        inside.then_some(Hit { slot: at.slot, bar: at.bar, offset })
    }

    /// Where a BAR decodes.
    pub fn place(&self, slot: u8, spec: &BarSpec) -> Option<u64> {
        let mut all = self.of(spec.kind.into()).iter();
        all.find(|(_, at)| at.slot == slot && at.bar == spec.index).map(|(start, _)| *start)
    }

    /// Lets a BAR decode at `start`, unless another does there.
    pub fn insert(&mut self, slot: u8, spec: &BarSpec, start: u64) -> bool {
        let map = self.of_mut(spec.kind.into());
        let Some(end) = start.checked_add(spec.size) else { return false };
        if map.range(..end).next_back().is_some_and(|(other, at)| other + at.size > start) {
            return false;
        }
        map.insert(start, Decoded { slot, bar: spec.index, size: spec.size });
        true
    }

    /// A BAR decodes nowhere any more.
    pub fn remove(&mut self, slot: u8, spec: &BarSpec) {
        self.of_mut(spec.kind.into()).retain(|_, at| (at.slot, at.bar) != (slot, spec.index));
    }

    /// All of them, by address, memory first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Decoded)> + '_ {
        self.memory.iter().chain(&self.ports).map(|(start, at)| (*start, *at))
    }
}
