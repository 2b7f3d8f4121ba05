//! Where things are in a file that holds RAM.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::cpr::ownership::PAGE_SIZE;
use crate::cpr::reboot::stamp::MAGIC;

/// Where the chunks begin: behind the stamp's page.
pub const DATA: u64 = PAGE_SIZE;

/// What the file ends with.
const END: [u8; 8] = *b"cprtrail";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    state_len: U64,
    end: [u8; 8],
}

const TRAILER: u64 = size_of::<Trailer>() as u64;

/// The trailer behind so many bytes of state.
pub fn trailer(state_len: u64) -> impl AsRef<[u8]> {
    let mut bytes = [0; TRAILER as usize];
    bytes.copy_from_slice(Trailer { state_len: state_len.into(), end: END }.as_bytes());
    bytes
}

/// What a file is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where the state is.
    pub state: Range<u64>,
    /// Where chunks are, if it is a file with RAM.
    pub chunks: Option<Range<u64>>,
}

impl Layout {
    /// Looks at a file of so many bytes. What is no file with RAM is state from its beginning to its end.
    ///
    /// An error of the kind [`io::ErrorKind::InvalidData`] where it begins as a file with RAM does and does not end as one.
    pub fn of(file: &File, length: u64) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        let plain = Self { state: 0..length, chunks: None };
        if length < DATA + TRAILER {
            return Ok(plain);
        }
        file.read_exact_at(&mut magic, 0)?;
        if magic != MAGIC {
            return Ok(plain);
        }
        let mut bytes = [0; TRAILER as usize];
        file.read_exact_at(&mut bytes, length - TRAILER)?;
        let trailer: Trailer = zerocopy::transmute!(bytes);
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "it holds RAM, and ends before its end");
        if trailer.end != END {
            return Err(cut());
        }
        let end = length - TRAILER;
        let start =
            end.checked_sub(trailer.state_len.get()).filter(|start| *start >= DATA).ok_or_else(cut)?;
        Ok(Self { state: start..end, chunks: Some(DATA..start) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_file_with_ram_is_known_by_both_its_ends() {
        let mut bytes = vec![0; 8192];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes.extend_from_slice(b"state");
        let state = 8192..8197;
        let plain = Layout::of(&file(b"cprstate"), 8).unwrap();
        assert_eq!(plain, Layout { state: 0..8, chunks: None });
        let cut = Layout::of(&file(&bytes), 8197).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::InvalidData);
        for (state_len, fits) in [(5, true), (4102, false), (u64::MAX, false)] {
            let whole = [&bytes[..], trailer(state_len).as_ref()].concat();
            let found = Layout::of(&file(&whole), whole.len() as u64);
            let expected = fits.then(|| Layout { state: state.clone(), chunks: Some(DATA..8192) });
            assert_eq!(found.ok(), expected, "{state_len}");
        }
    }
}
