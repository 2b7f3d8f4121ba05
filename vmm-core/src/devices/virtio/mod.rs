//! Virtio devices (virtio 1.2).

pub mod block;
pub mod buffers;
pub mod net;
pub mod options;

/// Says aloud that a test cannot run here; fails where CPR_REQUIRE asks for what needs a whole machine of one's own.
#[cfg(test)]
pub(crate) fn skip(missing: impl std::fmt::Display) {
    let required = std::env::var("CPR_REQUIRE").is_ok_and(|tiers| tiers.split(',').any(|tier| tier == "lab"));
    assert!(!required, "{missing}");
    eprintln!("skipped: {missing}");
}
