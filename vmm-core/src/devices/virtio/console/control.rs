//! What is said about ports: control messages (virtio 1.2, 5.3.6.2).

use bitflags::bitflags;

/// Length of a message: port (u32), event (u16), value (u16). A port's name follows its message.
pub(super) const MESSAGE: usize = 8;

/// `DEVICE_READY`: the driver has the device (value 1).
pub(super) const DEVICE_READY: u16 = 0;
/// `DEVICE_ADD`: there is a port.
const DEVICE_ADD: u16 = 1;
/// `PORT_READY`: the driver has the port (value 1).
pub(super) const PORT_READY: u16 = 3;
/// `CONSOLE_PORT`: the port is a console.
const CONSOLE_PORT: u16 = 4;
/// `PORT_OPEN`: somebody has the port open (value 1) or not (0), on the side that says it.
pub(super) const PORT_OPEN: u16 = 6;
/// `PORT_NAME`: the port's name.
const PORT_NAME: u16 = 7;

bitflags! {
    /// What the driver is still to be told of a port, each at most once.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Facts: u8 {
        /// That it is there.
        const PRESENCE = 1;
        /// That it is a console.
        const CONSOLE = 2;
        /// Its name.
        const NAME = 4;
        /// Whether somebody is connected on this side.
        const CONNECTION = 8;
    }
}

impl Facts {
    /// The next to tell: what it is comes before what happens to it.
    pub(super) fn next(self) -> Option<Self> {
        self.iter().next()
    }

    /// The message that tells this one fact.
    pub(super) fn message(self, port: u32, name: Option<&str>, connected: bool) -> Vec<u8> {
        let (event, value) = match self {
            Self::PRESENCE => (DEVICE_ADD, 0),
            Self::CONSOLE => (CONSOLE_PORT, 1),
            Self::NAME => (PORT_NAME, 1),
            _ => (PORT_OPEN, u16::from(connected)),
        };
        let mut message = Message { port, event, value }.to_bytes().to_vec();
        if self == Self::NAME {
            message.extend_from_slice(name.unwrap_or_default().as_bytes());
        }
        message
    }
}

/// A message without what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) port: u32,
    pub(super) event: u16,
    pub(super) value: u16,
}

impl Message {
    fn to_bytes(self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[..4].copy_from_slice(&self.port.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.event.to_le_bytes());
        bytes[6..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// Reads one; `None` where it is too short.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MESSAGE] = bytes.first_chunk()?;
        let [p0, p1, p2, p3, e0, e1, v0, v1] = *bytes;
        Some(Self {
            port: u32::from_le_bytes([p0, p1, p2, p3]),
            event: u16::from_le_bytes([e0, e1]),
            value: u16::from_le_bytes([v0, v1]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_told_in_the_order_in_which_a_driver_needs_them() {
        let mut due = Facts::all();
        let mut told = Vec::new();
        while let Some(fact) = due.next() {
            due -= fact;
            told.push(Message::from_bytes(&fact.message(3, Some("agent"), true)).unwrap().event);
        }
        assert_eq!(told, [DEVICE_ADD, CONSOLE_PORT, PORT_NAME, PORT_OPEN]);
    }

    #[test]
    fn a_name_follows_its_message_and_a_message_is_read_as_it_was_written() {
        let told = Facts::NAME.message(2, Some("agent"), false);
        assert_eq!(Message::from_bytes(&told), Some(Message { port: 2, event: PORT_NAME, value: 1 }));
        assert_eq!(&told[MESSAGE..], b"agent");
        assert_eq!(Message::from_bytes(&told[..7]), None);
    }
}
