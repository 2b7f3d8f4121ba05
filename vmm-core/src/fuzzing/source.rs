//! Choices out of bytes.

/// Bytes that are taken one after the other, and zeros after their end.
pub(super) struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(super) fn u64(&mut self) -> u64 {
        (0..8).fold(0, |value, at| value | u64::from(self.u8()) << (8 * at))
    }

    pub(super) fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// Below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u8) -> u8 {
        self.u8() % end
    }

    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.u8()) % all.len()]
    }
}
