//! What tests have in common.

use std::fmt::Display;

/// Says aloud that a test cannot run here; fails where `CPR_REQUIRE` names a tier that has what is missing: `kvm`, or `lab`, which has a
/// whole machine of its own.
pub(crate) fn skip(tier: &str, missing: impl Display) {
    let required =
        std::env::var("CPR_REQUIRE").is_ok_and(|tiers| tiers.split(',').any(|named| named == tier));
    assert!(!required, "{missing}");
    eprintln!("skipped: {missing}");
}
