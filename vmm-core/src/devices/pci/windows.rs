//! Where BARs may be, and where they are put before the guest starts.

use std::ops::Range;

use super::bar::{Bar, BarKind, BarSpec};

/// 64-bit BARs from this size on begin their life above 4 GiB, so that the small ones have room below.
const LARGE: u64 = 64 << 20;

/// The windows of the host bridge, as the guest is told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Memory below 4 GiB.
    pub low: Range<u64>,
    /// Memory above it.
    pub high: Range<u64>,
    /// Ports.
    pub io: Range<u64>,
}

impl Windows {
    /// Whether a BAR may decode where it stands.
    pub fn hold(&self, bar: &Bar) -> bool {
        let within = |window: &Range<u64>| {
            let end = bar.address.checked_add(bar.spec.size);
            bar.address >= window.start && end.is_some_and(|end| end <= window.end)
        };
        match bar.spec.kind {
            BarKind::Io => within(&self.io),
            BarKind::Memory32 | BarKind::Memory64 | BarKind::Rom => within(&self.low) || within(&self.high),
        }
    }

    /// Takes room for a BAR off a window.
    pub(super) fn take(&mut self, spec: &BarSpec) -> Option<u64> {
        match spec.kind {
            BarKind::Io => take(&mut self.io, spec.size),
            BarKind::Memory32 | BarKind::Rom => take(&mut self.low, spec.size),
            BarKind::Memory64 if spec.size >= LARGE => {
                take(&mut self.high, spec.size).or_else(|| take(&mut self.low, spec.size))
            }
            BarKind::Memory64 => take(&mut self.low, spec.size).or_else(|| take(&mut self.high, spec.size)),
        }
    }
}

fn take(window: &mut Range<u64>, size: u64) -> Option<u64> {
    let start = window.start.checked_next_multiple_of(size)?;
    let end = start.checked_add(size).filter(|end| *end <= window.end)?;
    window.start = end;
    Some(start)
}
