//! One block: which disk, which place, which sequence number, under a checksum.

use std::fmt;

/// Bytes in a block.
pub const BLOCK: usize = 4096;

/// Where a block belongs and which of those written there it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The disk's place among those under load.
    pub disk: u32,
    /// The block's place.
    pub place: u64,
    /// Counts up over all blocks that one worker writes.
    pub sequence: u64,
}

/// What a block that was read is, other than what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Its checksum does not fit: torn, or never written by this program.
    Damaged,
    /// It was written, but to another place.
    Misplaced(Label),
    /// It is not the one that was acknowledged last.
    Stale(Label),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => f.write_str("a bad checksum"),
            Self::Misplaced(found) => write!(f, "the block of disk {} place {}", found.disk, found.place),
            Self::Stale(found) => write!(f, "sequence number {}", found.sequence),
        }
    }
}

/// A block in memory, as direct I/O wants it.
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK]);

impl Block {
    /// An empty block to read into.
    pub fn empty() -> Box<Self> {
        Box::new(Self([0; BLOCK]))
    }

    /// Makes this the block with the given label: the label, words that differ with it, the checksum of both.
    pub fn fill(&mut self, label: Label) {
        let seed = label.sequence ^ label.place << 24 ^ u64::from(label.disk) << 56;
        for (index, word) in (seed..).zip(self.0.chunks_exact_mut(8)) {
            word.copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        self.0[..4].copy_from_slice(&label.disk.to_le_bytes());
        self.0[8..16].copy_from_slice(&label.place.to_le_bytes());
        self.0[16..24].copy_from_slice(&label.sequence.to_le_bytes());
        let crc = crc32fast::hash(&self.0[..BLOCK - 4]);
        self.0[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Whether this is the block with the given label.
    pub fn check(&self, expected: Label) -> Result<(), Wrong> {
        let word = |at: usize| u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap_or_default());
        if crc32fast::hash(&self.0[..BLOCK - 4]).to_le_bytes() != self.0[BLOCK - 4..] {
            return Err(Wrong::Damaged);
        }
        let disk = u32::from_le_bytes(self.0[..4].try_into().unwrap_or_default());
        let found = Label { disk, place: word(8), sequence: word(16) };
        match found {
            _ if found == expected => Ok(()),
            _ if (found.disk, found.place) != (expected.disk, expected.place) => Err(Wrong::Misplaced(found)),
            _ => Err(Wrong::Stale(found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { disk: 1, place: 77, sequence: 9 };

    #[test]
    fn a_block_is_the_one_that_was_written() {
        let mut block = Block::empty();
        block.fill(LABEL);
        assert_eq!(block.check(LABEL), Ok(()));
    }

    #[test]
    fn a_changed_bit_anywhere_is_damage() {
        let mut block = Block::empty();
        for at in [0, 8, 16, 100, 2048, BLOCK - 1] {
            block.fill(LABEL);
            block.0[at] ^= 0x10;
            assert_eq!(block.check(LABEL), Err(Wrong::Damaged), "byte {at}");
        }
    }

    #[test]
    fn a_block_that_was_never_written_is_damage() {
        assert_eq!(Block::empty().check(LABEL), Err(Wrong::Damaged));
    }

    #[test]
    fn two_writes_mixed_in_one_block_are_damage() {
        let (mut block, mut newer) = (Block::empty(), Block::empty());
        block.fill(LABEL);
        newer.fill(Label { sequence: 10, ..LABEL });
        block.0[..512].copy_from_slice(&newer.0[..512]);
        assert_eq!(block.check(LABEL), Err(Wrong::Damaged));
    }

    #[test]
    fn the_block_of_another_place_or_disk_is_misplaced() {
        let mut block = Block::empty();
        for other in [Label { place: 78, ..LABEL }, Label { disk: 0, ..LABEL }] {
            block.fill(other);
            assert_eq!(block.check(LABEL), Err(Wrong::Misplaced(other)));
        }
    }

    #[test]
    fn a_write_that_was_acknowledged_and_is_not_there_leaves_a_stale_block() {
        let mut block = Block::empty();
        let older = Label { sequence: 8, ..LABEL };
        block.fill(older);
        assert_eq!(block.check(LABEL), Err(Wrong::Stale(older)));
    }
}
