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
            if self.at - self.start == MAX_VALUE {
                return Some(Frame::TooLong);
            }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn all(framer: &mut Framer) -> Vec<Frame> {
        std::iter::from_fn(|| framer.next()).take(1000).collect()
    }

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut framer = Framer::default();
        framer.push(bytes);
        all(&mut framer)
    }

    const TWO: &[u8] = b" {\"a\": \"}\\\"{\", \"b\": [1, {}]}\r\n{\"c\":\n null} ";

    #[test]
    fn values_are_found_however_they_are_split() {
        let expected =
            vec![Frame::Value(json!({"a": "}\"{", "b": [1, {}]})), Frame::Value(json!({"c": null}))];
        for at in 0..TWO.len() {
            let mut framer = Framer::default();
            framer.push(&TWO[..at]);
            let mut found = all(&mut framer);
            framer.push(&TWO[at..]);
            found.extend(all(&mut framer));
            assert_eq!(found, expected, "split at {at}");
        }
    }

    #[test]
    fn values_are_found_byte_by_byte_and_across_a_handover() {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        for byte in TWO {
            framer.push(&[*byte]);
            found.extend(all(&mut framer));
            framer = Framer::resume(framer.pending().to_vec(), framer.is_skipping());
        }
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn malformed_lines_are_reported_once_and_what_follows_is_read() {
        for line in [
            "garbage {",
            "]",
            "{]",
            "{\"a\": foo}",
            "{\"a\": foo",
            "{\"a\": \"b",
            "{\"a\" \"b\"}",
            "{\"a\": \"\\x\"}",
            "{\"a\": 1}}",
            "\u{1}",
        ] {
            let found = frames(format!("{line}\n{{\"ok\": 1}}").as_bytes());
            let errors = found.iter().filter(|frame| matches!(frame, Frame::Malformed(_))).count();
            assert_eq!(errors, 1, "{line}: {found:?}");
            assert_eq!(found.last(), Some(&Frame::Value(json!({"ok": 1}))), "{line}");
        }
    }

    #[test]
    fn invalid_utf8_is_malformed() {
        assert!(matches!(frames(b"{\"a\": \"\xc3\x28\"}")[..], [Frame::Malformed(_)]));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}\n", "[".repeat(n - 1), "]".repeat(n - 1));
        assert!(matches!(frames(deep(MAX_DEPTH).as_bytes())[..], [Frame::Value(_)]));
        assert!(matches!(frames(deep(MAX_DEPTH + 1).as_bytes())[..], [Frame::Malformed(_)]));
        assert!(matches!(frames("[".repeat(100_000).as_bytes())[..], [Frame::Malformed(_)]));
    }

    #[test]
    fn a_value_over_the_bound_ends_the_stream() {
        let long = |n: usize| format!("[\"{}\"]", "x".repeat(n - 4));
        assert!(matches!(frames(long(MAX_VALUE).as_bytes())[..], [Frame::Value(_)]));
        assert!(matches!(frames(long(MAX_VALUE + 1).as_bytes())[0], Frame::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            noise in proptest::collection::vec(any::<u8>(), 0..200),
            split in 0usize..200,
        ) {
            let mut framer = Framer::default();
            let at = split.min(noise.len());
            framer.push(&noise[..at]);
            all(&mut framer);
            framer.push(&noise[at..]);
            all(&mut framer);
            prop_assert!(framer.pending().len() <= noise.len());
        }
    }
}
