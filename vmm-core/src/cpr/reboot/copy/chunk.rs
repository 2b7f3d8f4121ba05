//! One chunk of RAM, in the file and out of it.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// Bytes of RAM that have one checksum; the last chunk may have less.
pub const CHUNK: u64 = 1 << 20;
/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// How hard zstd tries: little. The guest stands meanwhile.
const LEVEL: i32 = 1;

/// What packs chunks, one after the other.
pub(super) struct Packer {
    zstd: Compressor<'static>,
    packed: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { zstd: Compressor::new(LEVEL)?, packed: vec![0; CHUNK as usize] })
    }

    /// A chunk as it goes into the file; none for zeros.
    pub(super) fn pack<'a>(&'a mut self, ram: &'a [u8]) -> Option<&'a [u8]> {
        if is_zero(ram) {
            return None;
        }
        let room = ram.len().saturating_sub(1).min(self.packed.len());
        // What does not get shorter does not fit.
        match self.zstd.compress_to_buffer(ram, &mut self.packed[..room]) {
            Ok(length) => Some(&self.packed[..length]),
            Err(_) => Some(ram),
        }
    }
}

/// What takes chunks out.
pub(super) struct Unpacker {
    zstd: Decompressor<'static>,
    ram: Vec<u8>,
}

impl Unpacker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { zstd: Decompressor::new()?, ram: vec![0; CHUNK as usize] })
    }

    /// So many bytes of RAM that were stored like this; an error says what came out instead.
    pub(super) fn unpack<'a>(&'a mut self, stored: &'a [u8], bytes: usize) -> Result<&'a [u8], String> {
        if stored.len() == bytes {
            return Ok(stored);
        }
        let room = self.ram.get_mut(..bytes).ok_or("more than a chunk")?;
        match self.zstd.decompress_to_buffer(stored, room) {
            Ok(length) if length == bytes => Ok(&self.ram[..bytes]),
            Ok(length) => Err(format!("{length} bytes")),
            Err(error) => Err(format!("what zstd does not take ({error})")),
        }
    }
}

/// Whether bytes are nothing but zeros.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// The stretches of whole pages that are not zeros, of bytes that begin at `at`, each with where it begins. A page of zeros is not touched:
/// it would take room.
pub(super) fn data(bytes: &[u8], at: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let pages = bytes.chunks(PAGE).map(is_zero).collect::<Vec<_>>();
    let mut from = 0;
    let runs: Vec<_> = (pages.chunk_by(|one, next| one == next))
        .map(|run| {
            let start = from;
            from = (start + run.len() * PAGE).min(bytes.len());
            (run[0], start..from)
        })
        .collect();
    runs.into_iter().filter(|(zero, _)| !zero).map(move |(_, run)| (at + run.start as u64, &bytes[run]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_was_packed_comes_out() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new().unwrap());
        let half = CHUNK as usize / 2;
        let mut some = vec![0; CHUNK as usize];
        some[PAGE..PAGE + 9].copy_from_slice(b"something");
        for ram in [some, noise(CHUNK as usize), noise(half), vec![7; half], vec![1]] {
            let stored = packer.pack(&ram).unwrap().to_vec();
            assert!(stored.len() <= ram.len());
            assert_eq!(unpacker.unpack(&stored, ram.len()).unwrap(), ram);
        }
        assert_eq!(packer.pack(&vec![0; CHUNK as usize]), None);
    }

    #[test]
    fn what_is_of_another_length_or_no_zstd_is_refused() {
        let (mut packer, mut unpacker) = (Packer::new().unwrap(), Unpacker::new().unwrap());
        let stored = packer.pack(&[7; 8192]).unwrap().to_vec();
        assert!(unpacker.unpack(&stored, 8193).is_err());
        assert!(unpacker.unpack(&stored, 8191).is_err());
        assert!(unpacker.unpack(&stored[..stored.len() - 1], 8192).is_err());
        assert!(unpacker.unpack(b"no zstd", 8192).is_err());
        assert!(unpacker.unpack(&stored, 2 * CHUNK as usize).is_err());
    }

    #[test]
    fn pages_of_zeros_are_passed_over_and_others_found_in_one_piece() {
        let mut bytes = vec![0; 6 * PAGE];
        for at in [PAGE, 3 * PAGE - 1, 5 * PAGE] {
            bytes[at] = 1;
        }
        let found =
            |bytes: &[u8]| data(bytes, CHUNK).map(|(at, run)| (at - CHUNK, run.len())).collect::<Vec<_>>();
        assert_eq!(found(&bytes), [(PAGE as u64, 2 * PAGE), (5 * PAGE as u64, PAGE)]);
        assert_eq!(found(&bytes[..5 * PAGE]), [(PAGE as u64, 2 * PAGE)]);
        assert_eq!(found(&[1; 100]), [(0, 100)]);
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for length in [1, 15, 16, 17, 4096, 4099] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
