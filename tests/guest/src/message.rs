//! A message of the TCP stream between a test guest and whoever watches it: numbered and checksummed.

/// Bytes in a message.
pub const LENGTH: usize = 1024;
/// The port that the guest answers on, each message by the same.
pub const PORT: u16 = 7000;

/// The message with the given number.
pub fn make(number: u64) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    for (index, word) in (number..).zip(message.chunks_exact_mut(8)) {
        word.copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    message[..8].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&message[..LENGTH - 4]);
    message[LENGTH - 4..].copy_from_slice(&crc.to_le_bytes());
    message
}

/// What is wrong with a message that should be the one with the given number.
pub fn check(message: &[u8; LENGTH], expected: u64) -> Result<(), String> {
    if crc32fast::hash(&message[..LENGTH - 4]).to_le_bytes() != message[LENGTH - 4..] {
        return Err(format!("a bad checksum for message {expected}"));
    }
    let number = u64::from_le_bytes(message[..8].try_into().unwrap_or_default());
    if number == expected { Ok(()) } else { Err(format!("message {number} for message {expected}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_one_expected_or_what_it_is_instead_is_said() {
        let mut message = make(7);
        assert_eq!(check(&message, 7), Ok(()));
        assert_eq!(check(&message, 8).unwrap_err(), "message 7 for message 8");
        message[500] ^= 1;
        assert_eq!(check(&message, 7).unwrap_err(), "a bad checksum for message 7");
    }
}
