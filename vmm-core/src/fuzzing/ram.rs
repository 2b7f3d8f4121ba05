//! Guest RAM between canaries.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Bytes of each of the two pieces of RAM.
pub(super) const PIECE: u64 = 512 << 10;
/// Where the pieces are, with a hole between them.
pub(super) const PIECES: [u64; 2] = [0, 1 << 20];
/// Bytes before and after each piece.
const MARGIN: usize = 64 << 10;
const CANARY: u8 = 0xc5;

/// Two pieces of RAM.
pub(super) struct Ram {
    /// As the machine has it.
    pub memory: Arc<GuestMemoryMmap>,
    /// What the pieces lie in. They must not be used once this is gone.
    arenas: [MmapRegion; 2],
}

impl Ram {
    pub(super) fn new() -> Self {
        let arenas = PIECES.map(|_| MmapRegion::new(PIECE as usize + 2 * MARGIN).unwrap());
        let region = |(arena, at): (&MmapRegion, u64)| {
            for margin in margins(arena) {
                // SAFETY: margins are in the arena, which nothing else uses yet.
                unsafe { margin.write_bytes(CANARY, MARGIN) };
            }
            let start = arena.as_ptr().wrapping_add(MARGIN);
            // SAFETY: the piece lies in the arena, which outlives the machine that uses it.
            let piece = unsafe { MmapRegion::build_raw(start, PIECE as usize, arena.prot(), arena.flags()) };
            GuestRegionMmap::new(piece.unwrap(), GuestAddress(at)).unwrap()
        };
        let regions = arenas.iter().zip(PIECES).map(region).collect();
        Self { memory: Arc::new(GuestMemoryMmap::from_regions(regions).unwrap()), arenas }
    }

    /// Panics if anything was written beside the RAM.
    pub(super) fn check(&self) {
        for margin in self.arenas.iter().flat_map(margins) {
            // SAFETY: as above; who writes there now is what is looked for.
            let bytes = unsafe { std::slice::from_raw_parts(margin, MARGIN) };
            assert!(bytes.iter().all(|byte| *byte == CANARY), "a write outside guest RAM");
        }
    }
}

fn margins(arena: &MmapRegion) -> [*mut u8; 2] {
    [arena.as_ptr(), arena.as_ptr().wrapping_add(MARGIN + PIECE as usize)]
}
