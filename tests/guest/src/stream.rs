//! Reads a test guest's console and says what happened to its bytes.

use serde::{Deserialize, Serialize};

use crate::frame::Frame;

/// Longest line that is kept while its end is awaited, in bytes; a longer one is damaged.
const LONGEST_LINE: usize = 1 << 16;

/// What happened to the console's lines so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStats {
    /// Whole lines received.
    pub lines: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Lines missing from the sequence while the client was connected.
    pub lost: u64,
    /// Lines that came again, or out of order.
    pub repeated: u64,
    /// Lines that were no whole frame.
    pub damaged: u64,
    /// Times that the client was disconnected and came back.
    pub reconnects: u64,
    /// Lines written while no client was there to read them.
    pub unread: u64,
}

/// A reader of a test guest's console.
///
/// What comes before the first whole frame (the boot loader's and the kernel's own messages) does not count.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamReader {
    partial: Vec<u8>,
    next: Option<u64>,
    /// The client was away: the line at hand may have lost its head, and lines may be missing.
    resync: bool,
    stats: StreamStats,
}

impl StreamReader {
    /// What happened to the console's lines so far.
    pub fn stats(&self) -> &StreamStats {
        &self.stats
    }

    /// The client lost its connection and has a new one.
    pub fn reconnected(&mut self) {
        self.partial.clear();
        self.stats.reconnects += 1;
        self.resync = true;
    }

    /// Takes what was read; returns the frames that are whole now.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.stats.bytes += bytes.len() as u64;
        let mut frames = Vec::new();
        for &byte in bytes {
            if byte != b'\n' && self.partial.len() < LONGEST_LINE {
                self.partial.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.partial);
            frames.extend(self.line(&line));
        }
        frames
    }

    fn line(&mut self, line: &[u8]) -> Option<Frame> {
        let frame = std::str::from_utf8(line).ok().and_then(|text| text.parse::<Frame>().ok());
        let Some(frame) = frame else {
            if self.next.is_some() && !self.resync {
                self.stats.damaged += 1;
            }
            return None;
        };
        self.stats.lines += 1;
        let expected = self.next.unwrap_or(frame.sequence);
        if frame.sequence < expected {
            self.stats.repeated += 1;
            return None;
        }
        let missing = frame.sequence - expected;
        if self.resync {
            self.stats.unread += missing;
            self.resync = false;
        } else {
            self.stats.lost += missing;
        }
        self.next = Some(frame.sequence + 1);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;

    fn lines(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let frame = |sequence| Frame { sequence, kind: Kind::Numbered, payload: "x".into() };
        numbers.into_iter().flat_map(|n| format!("{}\n", frame(n)).into_bytes()).collect()
    }

    #[test]
    fn a_whole_stream_in_pieces_of_any_size_has_nothing_wrong() {
        let bytes = lines(0..50);
        for size in 1..40 {
            let mut reader = StreamReader::default();
            reader.feed(b"Linux version\r\n");
            let frames: usize = bytes.chunks(size).map(|chunk| reader.feed(chunk).len()).sum();
            let stats = reader.stats();
            assert_eq!((frames, stats.lost, stats.repeated, stats.damaged), (50, 0, 0, 0));
        }
    }

    #[test]
    fn lost_repeated_and_damaged_lines_are_counted_apart() {
        let mut reader = StreamReader::default();
        reader.feed(&lines([0, 1, 4, 4, 5]));
        let mut torn = lines([6]);
        torn.remove(3);
        reader.feed(&torn);
        reader.feed(&lines([7]));
        let stats = reader.stats();
        assert_eq!((stats.lost, stats.repeated, stats.damaged), (3, 1, 1));
    }

    #[test]
    fn what_was_written_while_no_client_was_there_is_not_lost_but_never_comes_again() {
        let mut reader = StreamReader::default();
        reader.feed(&lines(0..3));
        reader.feed(b"3 N tor");
        reader.reconnected();
        reader.feed(b"n 123\n");
        reader.feed(&lines([9, 2, 10]));
        let stats = reader.stats();
        assert_eq!((stats.unread, stats.lost, stats.repeated, stats.damaged), (6, 0, 1, 0));
    }
}
