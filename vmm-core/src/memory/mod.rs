//! RAM blocks: a name, a backing (memfd, hugetlb, file, DAX), where it maps.
//!
//! 1. A block is one descriptor. It is kept over a handover, never copied and never made again from what it was
//!    loaded from.
//! 2. A received descriptor is checked for what it claims to be before it is mapped ([`RamBlock::adopt`]): its size
//!    cannot change under the guest, and writes cannot be taken away.
//! 3. A block with a path is locked: no second process can boot on RAM that is in use. In a DAX device it may have a part, with the
//!    rest for others.
//! 4. Beside the RAM that outlives its process lies a stamp page ([`RamBlock::stamp_location`]), out of the guest's
//!    sight: a cold boot clears it, a saved state writes it.
//! 5. Faulting pages in ([`GuestRam::populate`]) allocates nothing that the guest has not touched.
//!
//! `block.rs` is the block and how it comes to be, `open.rs` makes and opens backings, `check.rs` looks at received
//! descriptors, `lock.rs` and `stamp.rs` guard what has a path, `map.rs` maps, `slots.rs` tells KVM, `populate.rs`
//! faults in, `userfault/` puts pages in that are waited for, `state.rs` is the wire form.

mod block;
mod check;
mod dax;
mod error;
pub(crate) mod lock;
mod map;
mod open;
mod populate;
mod slots;
mod stamp;
mod state;
mod userfault;

pub use self::block::{RAM, ROM, RamBlock};
pub use self::check::is_in_memory;
pub use self::error::MemoryError;
pub use self::lock::Extent;
pub use self::map::GuestRam;
pub(crate) use self::open::memfd;
pub(crate) use self::populate::next_data;
pub use self::slots::{MemorySlot, set_slots};
pub use self::stamp::StampLocation;
pub(crate) use self::stamp::persist;
pub use self::state::{RamBlockState, RamFate, RamKind};
pub use self::userfault::MissingPages;
