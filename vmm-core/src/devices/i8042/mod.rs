//! The keyboard controller, as far as a reset by it goes.
//!
//! 1. 0xFE to its command port resets the machine; nothing else has an effect, and it has no keyboard.
//! 2. It holds no state, so it saves none.

mod device;

pub use self::device::I8042;
