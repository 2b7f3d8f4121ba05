//! One line of a test guest's console: `SEQUENCE KIND PAYLOAD CRC32`, ended by a line feed.

use std::fmt;
use std::str::FromStr;

/// What a line carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Filler, written without end so that a lost or repeated byte is seen.
    Numbered,
    /// The answer to a command.
    Reply,
    /// A kernel message that says something went wrong.
    Kernel,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Self::Numbered => 'N',
            Self::Reply => 'R',
            Self::Kernel => 'K',
        }
    }
}

/// One line of the console. Lines of all kinds share one sequence, from 0 without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The line's place in the sequence.
    pub sequence: u64,
    /// What the line carries.
    pub kind: Kind,
    /// Text without a line feed.
    pub payload: String,
}

impl Frame {
    fn body(&self) -> String {
        format!("{} {} {}", self.sequence, self.kind.letter(), self.payload)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        write!(f, "{body} {:08x}", crc32fast::hash(body.as_bytes()))
    }
}

/// The line is no whole frame: a byte of it was lost, repeated or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged;

impl FromStr for Frame {
    type Err = Damaged;

    fn from_str(line: &str) -> Result<Self, Damaged> {
        let (body, crc) = line.rsplit_once(' ').ok_or(Damaged)?;
        if crc.len() != 8 || u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(body.as_bytes())) {
            return Err(Damaged);
        }
        let mut parts = body.splitn(3, ' ');
        let (Some(sequence), Some(kind), Some(payload)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Damaged);
        };
        let kind = match kind {
            "N" => Kind::Numbered,
            "R" => Kind::Reply,
            "K" => Kind::Kernel,
            _ => return Err(Damaged),
        };
        Ok(Self { sequence: sequence.parse().map_err(|_| Damaged)?, kind, payload: payload.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_as_it_was_written() {
        let frame = Frame { sequence: 42, kind: Kind::Reply, payload: "{\"a\": 1} two".into() };
        assert_eq!(frame.to_string().parse(), Ok(frame));
    }

    #[test]
    fn a_frame_with_any_byte_lost_or_repeated_is_damaged() {
        let line = Frame { sequence: 7, kind: Kind::Numbered, payload: "abcabc".into() }.to_string();
        for at in 0..line.len() {
            let mut lost = line.clone();
            lost.remove(at);
            assert_eq!(lost.parse::<Frame>(), Err(Damaged), "lost byte {at}");
            let mut repeated = line.clone();
            repeated.insert(at, line.as_bytes()[at] as char);
            assert_eq!(repeated.parse::<Frame>(), Err(Damaged), "repeated byte {at}");
        }
    }
}
