//! What tells the network where a guest is.

use super::mac::Mac;

/// Bytes of a frame without its checksum: the shortest that Ethernet has.
pub const FRAME: usize = 60;

/// A frame that makes every switch on its way learn where `mac` is: a broadcast RARP request for its own address
/// (RFC 903). It says nothing about the guest's IP addresses, and no host answers to it.
pub fn rarp(mac: Mac) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&[0xff; 6]);
    put(&mac.0);
    put(&0x8035_u16.to_be_bytes());
    // Ethernet, IPv4, the lengths of their addresses; the operation: a reverse request.
    put(&[0, 1, 8, 0, 6, 4, 0, 3]);
    put(&mac.0);
    put(&[0; 4]);
    put(&mac.0);
    put(&[0; 4]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_a_reverse_request_for_the_own_address() {
        let frame = rarp(Mac([0x52, 0x54, 0, 1, 2, 3]));
        let expected = [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2, 3, 0x80, 0x35][..],
            &[0, 1, 0x08, 0, 6, 4, 0, 3],
            &[0x52, 0x54, 0, 1, 2, 3, 0, 0, 0, 0],
            &[0x52, 0x54, 0, 1, 2, 3, 0, 0, 0, 0],
            &[0; 18],
        ];
        assert_eq!(frame[..], expected.concat()[..]);
    }
}
