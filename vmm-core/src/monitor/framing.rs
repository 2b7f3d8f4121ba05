//! Finds the JSON values in a stream of bytes, however they were split or joined on their way.
//!
//! 1. A value ends where its outermost bracket closes: no newline is needed.
//! 2. What cannot be JSON is reported once and skipped to the end of its line; the stream goes on after it.
//! 3. No value is longer than [`MAX_VALUE`], none nested deeper than [`MAX_DEPTH`]; each byte is looked at a bounded number
//!    of times.

use serde_json::Value;

/// The longest value, in bytes.
pub(super) const MAX_VALUE: usize = 1 << 20;

/// The deepest nesting; serde_json's own bound.
const MAX_DEPTH: usize = 127;

/// What the stream held next.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// A JSON value.
    Value(Value),
    /// Something that is no JSON, and what is wrong with it. It has been skipped.
    Malformed(String),
    /// A value that is longer than [`MAX_VALUE`]: the stream is not worth going on with.
    TooLong,
}

/// The bytes of a stream that are not yet taken as values.
#[derive(Debug, Default)]
pub(super) struct Framer {
    buffer: Vec<u8>,
    /// Where the value that is being read begins.
    start: usize,
    /// Where the next byte to look at is.
    at: usize,
    /// The closing brackets that are waited for.
    open: Vec<u8>,
    in_string: bool,
    escaped: bool,
    /// Skipping to the end of the line, after something malformed.
    skipping: bool,
    /// The length at which an unfinished value was last tried.
    tried: usize,
}

impl Framer {
    /// A stream that goes on in the middle, as [`Self::pending`] and [`Self::is_skipping`] described it.
    pub fn resume(pending: Vec<u8>, skipping: bool) -> Self {
        Self { buffer: pending, skipping, ..Self::default() }
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.at -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The bytes not yet taken.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Whether what comes up to the next newline belongs to something malformed.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Takes the next value, if one is complete.
    pub fn next(&mut self) -> Option<Frame> {
        while let Some(&byte) = self.buffer.get(self.at) {
            self.at += 1;
            if self.skipping {
                self.skipping = byte != b'\n';
                self.take();
            } else if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    0..0x20 => return Some(self.malformed(byte, "control character in a string")),
                    _ => {}
                }
            } else {
                match byte {
                    b'{' | b'[' if self.open.len() == MAX_DEPTH => {
                        return Some(self.malformed(byte, "nested too deep"));
                    }
                    b'{' => self.open.push(b'}'),
                    b'[' => self.open.push(b']'),
                    // 0xff: some clients send it to get a clean start.
                    b' ' | b'\t' | b'\r' | b'\n' | 0xff if self.open.is_empty() => self.take(),
                    _ if self.open.is_empty() => {
                        return Some(self.malformed(byte, "expected an object"));
                    }
                    b'}' | b']' => {
                        if self.open.pop() != Some(byte) {
                            return Some(self.malformed(byte, "bracket does not match"));
                        }
                        if self.open.is_empty() {
                            return Some(self.complete());
                        }
                    }
                    b'"' => self.in_string = true,
                    b'\n' if self.at - self.start >= 2 * self.tried => {
                        if let Some(error) = self.hopeless() {
                            return Some(self.malformed(byte, &error));
                        }
                    }
                    _ => {}
                }
            }
            if self.at - self.start > MAX_VALUE {
                return Some(Frame::TooLong);
            }
        }
        None
    }

    /// Forgets the bytes looked at so far, and with them the value that was being read.
    fn take(&mut self) {
        self.start = self.at;
        self.open.clear();
        (self.in_string, self.escaped, self.tried) = (false, false, 0);
    }

    fn complete(&mut self) -> Frame {
        let frame = match serde_json::from_slice(&self.buffer[self.start..self.at]) {
            Ok(value) => Frame::Value(value),
            Err(error) => Frame::Malformed(error.to_string()),
        };
        self.take();
        frame
    }

    fn malformed(&mut self, last: u8, why: &str) -> Frame {
        self.skipping = last != b'\n';
        self.take();
        Frame::Malformed(why.to_owned())
    }

    /// Why the unfinished value cannot become JSON, whatever follows.
    fn hopeless(&mut self) -> Option<String> {
        self.tried = self.at - self.start;
        let mut values =
            serde_json::Deserializer::from_slice(&self.buffer[self.start..self.at]).into_iter::<Value>();
        match values.next() {
            Some(Err(error)) if !error.is_eof() => Some(error.to_string()),
            _ => None,
        }
    }
}
