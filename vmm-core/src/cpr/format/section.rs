//! The contract of a wire struct.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::FormatError;

/// What a section holds. Numbers are on the wire, and never reused (3 was never released).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum SectionKind {
    /// The machine's configuration.
    Machine = 1,
    /// RAM blocks: name, size, backing, guest address.
    Ram = 2,
    /// Interrupt chips, PIT, routing.
    Vm = 4,
    /// The guest's clock against the host's.
    Clock = 5,
    /// One vCPU; the instance is its id.
    Vcpu = 6,
    /// A serial port.
    Serial = 7,
    /// The CMOS clock.
    Rtc = 8,
    /// ACPI power management registers.
    Pm = 9,
    /// Run state of the machine.
    RunState = 10,
    /// A character device's backend.
    Chardev = 11,
    /// The monitor.
    Monitor = 12,
    /// What ties RAM in a file to the state file.
    RamStamp = 13,
    /// The keyboard controller.
    I8042 = 14,
    /// How an exec has gone so far.
    Journey = 15,
    /// The PCI bus: where BARs decode.
    PciBus = 16,
    /// The configuration space of a PCI function; the instance is its slot.
    PciConfig = 17,
    /// The MSI-X vectors of a PCI function; the instance is its slot.
    Msix = 18,
    /// The virtio transport of a PCI function; the instance is its slot.
    Virtio = 19,
    /// The image of a virtio disk; the instance is its slot.
    VirtioBlock = 20,
    /// A virtio network device; the instance is its slot.
    VirtioNet = 21,
    /// A memory balloon; the instance is its slot.
    VirtioBalloon = 23,
    /// The ports of a virtio console; the instance is its slot.
    VirtioConsole = 24,
    /// A device of the host; the instance is its slot.
    Vfio = 25,
    /// Where copied RAM is in the state file.
    RamCopy = 26,
    /// The guest was suspended to be saved.
    Wake = 27,
    /// The last section, empty.
    End = 0xffff_ffff,
}

impl SectionKind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Machine,
        Self::Ram,
        Self::Vm,
        Self::Clock,
        Self::Vcpu,
        Self::Serial,
        Self::Rtc,
        Self::Pm,
        Self::RunState,
        Self::Chardev,
        Self::Monitor,
        Self::RamStamp,
        Self::I8042,
        Self::Journey,
        Self::PciBus,
        Self::PciConfig,
        Self::Msix,
        Self::Virtio,
        Self::VirtioBlock,
        Self::VirtioNet,
        Self::VirtioBalloon,
        Self::VirtioConsole,
        Self::Vfio,
        Self::RamCopy,
        Self::Wake,
        Self::End,
    ];

    /// The kind with this number on the wire.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| *kind as u32 == number)
    }

    /// Its name in messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::Ram => "ram",
            Self::Vm => "vm",
            Self::Clock => "clock",
            Self::Vcpu => "vcpu",
            Self::Serial => "serial",
            Self::Rtc => "rtc",
            Self::Pm => "pm",
            Self::RunState => "run-state",
            Self::Chardev => "chardev",
            Self::Monitor => "monitor",
            Self::RamStamp => "ram-stamp",
            Self::I8042 => "i8042",
            Self::Journey => "journey",
            Self::PciBus => "pci-bus",
            Self::PciConfig => "pci-config",
            Self::Msix => "msix",
            Self::Virtio => "virtio",
            Self::VirtioBlock => "virtio-block",
            Self::VirtioNet => "virtio-net",
            Self::VirtioBalloon => "virtio-balloon",
            Self::VirtioConsole => "virtio-console",
            Self::Vfio => "vfio",
            Self::RamCopy => "ram-copy",
            Self::Wake => "wake",
            Self::End => "end",
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which section: its kind, as a number because it may be one that this build does not know, and which of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId {
    /// The kind's number on the wire.
    pub kind: u32,
    /// Which of several; 0 where there is one.
    pub instance: u32,
}

impl SectionId {
    /// The `instance`th section of a kind.
    pub fn new(kind: SectionKind, instance: u32) -> Self {
        Self { kind: kind as u32, instance }
    }

    /// The kind's name, or its number where this build does not know it.
    pub fn kind_name(self) -> String {
        SectionKind::from_number(self.kind)
            .map_or_else(|| format!("kind {}", self.kind), |kind| kind.to_string())
    }
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.kind_name(), self.instance)
    }
}

/// A struct made for the wire and for nothing else.
///
/// Once released it is never edited: the next version is a new struct, this trait moves to it, and its
/// [`decode`](Self::decode) takes the older one and steps it up. Where a step back loses nothing,
/// [`encode`](Self::encode) takes it, and [`OLDEST_WRITTEN`](Self::OLDEST_WRITTEN) says so.
///
/// Payloads are postcard, which bounds what it allocates by the payload, provided that no element of a sequence
/// encodes to nothing: a wire struct has no sequence of empty structs.
pub trait Section: Serialize + DeserializeOwned {
    /// What it holds.
    const KIND: SectionKind;
    /// The version that `Self` is, and the newest read.
    const VERSION: u16;
    /// The oldest version read.
    const OLDEST: u16;
    /// The oldest version that can be written.
    const OLDEST_WRITTEN: u16 = Self::VERSION;

    /// Reads a payload of a version from [`OLDEST`](Self::OLDEST) to [`VERSION`](Self::VERSION).
    ///
    /// By default only the present one. Bytes after the struct are an error.
    fn decode(version: u16, payload: &[u8]) -> Result<Self, FormatError> {
        if version != Self::VERSION {
            return Err(FormatError::Payload {
                kind: Self::KIND,
                reason: format!("version {version} has no decoder"),
            });
        }
        decode_as(Self::KIND, payload)
    }

    /// Writes a payload of a version from [`OLDEST_WRITTEN`](Self::OLDEST_WRITTEN) to [`VERSION`](Self::VERSION).
    ///
    /// By default only the present one.
    fn encode(&self, version: u16) -> Result<Vec<u8>, FormatError> {
        if version != Self::VERSION {
            return Err(FormatError::CannotWrite { kind: Self::KIND, version });
        }
        encode_as(Self::KIND, self)
    }
}

/// Reads a struct that must take up the whole payload. For the decoders of older versions.
pub fn decode_as<T: DeserializeOwned>(kind: SectionKind, payload: &[u8]) -> Result<T, FormatError> {
    let (value, rest) = postcard::take_from_bytes(payload).map_err(|e| FormatError::Payload {
        kind,
        reason: format!("its {} bytes do not decode: {e}", payload.len()),
    })?;
    if rest.is_empty() {
        return Ok(value);
    }
    Err(FormatError::Payload {
        kind,
        reason: format!("it has {} bytes, of which {} were read", payload.len(), payload.len() - rest.len()),
    })
}

/// Writes a struct as a payload. For the encoders of older versions.
pub fn encode_as<T: Serialize>(kind: SectionKind, value: &T) -> Result<Vec<u8>, FormatError> {
    postcard::to_stdvec(value)
        .map_err(|e| FormatError::Payload { kind, reason: format!("it does not encode: {e}") })
}
