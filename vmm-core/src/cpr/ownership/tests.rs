//! The word in a memfd, as two processes have it.

use std::os::fd::AsFd;

use memfd::{FileSeal, MemfdOptions};

use super::*;

/// The two sides of a new word.
fn sides() -> (Ownership, Ownership) {
    let (source, fd) = Ownership::create().unwrap();
    (source, Ownership::from_fd(fd).unwrap())
}

#[test]
fn the_target_claims_what_was_offered_once() {
    let (source, target) = sides();
    assert!(matches!(target.claim().unwrap_err(), OwnershipError::NotOffered));
    assert!(matches!(target.check_offer().unwrap_err(), OwnershipError::NotOffered));
    source.offer(Claim::cold_boot()).unwrap();
    target.check_offer().unwrap();
    let _claim = target.claim().unwrap();
    assert_eq!(source.state().unwrap(), State::Target);
    assert!(matches!(target.claim().unwrap_err(), OwnershipError::ClaimedByTarget));
}

#[test]
fn after_the_claim_everything_of_the_source_fails() {
    let (source, target) = sides();
    source.offer(Claim::cold_boot()).unwrap();
    let claim = target.claim().unwrap();
    assert!(matches!(source.take_back().unwrap_err(), OwnershipError::ClaimedByTarget));
    assert!(matches!(source.cancel().unwrap_err(), OwnershipError::ClaimedByTarget));
    assert!(matches!(source.offer(claim).unwrap_err(), OwnershipError::ClaimedByTarget));
}

#[test]
fn what_was_taken_back_cannot_be_claimed_even_when_it_is_offered_again() {
    let (source, stale) = sides();
    source.offer(Claim::cold_boot()).unwrap();
    assert!(matches!(source.cancel().unwrap_err(), OwnershipError::Offered));
    let claim = source.take_back().unwrap();
    assert!(matches!(stale.check_offer().unwrap_err(), OwnershipError::TakenBack));
    assert!(matches!(stale.claim().unwrap_err(), OwnershipError::TakenBack));
    source.cancel().unwrap();
    source.offer(claim).unwrap();
    assert!(matches!(stale.claim().unwrap_err(), OwnershipError::TakenBack));
    assert_eq!(source.state().unwrap(), State::Offered);
}

#[test]
fn nothing_offered_is_nothing_to_take_back() {
    let (source, _) = sides();
    assert!(matches!(source.take_back().unwrap_err(), OwnershipError::NotOffered));
}

#[test]
fn a_new_image_of_the_source_can_take_back_by_the_descriptor_alone() {
    let (source, fd) = Ownership::create().unwrap();
    source.offer(Claim::cold_boot()).unwrap();
    drop(source);
    let _claim = Ownership::from_fd(&fd).unwrap().take_back().unwrap();
}

#[test]
fn a_descriptor_that_is_no_word_is_refused_with_what_it_is() {
    let refusal = |fd: &dyn Fn() -> OwnedFd| Ownership::from_fd(fd()).unwrap_err().to_string();
    let memfd = |size: u64, seals: &[FileSeal]| {
        let memfd = MemfdOptions::new().allow_sealing(true).create("test").unwrap();
        memfd.as_file().set_len(size).unwrap();
        memfd.add_seals(seals).unwrap();
        OwnedFd::from(memfd.into_file())
    };
    let sealed = [FileSeal::SealShrink, FileSeal::SealGrow];
    assert!(refusal(&|| std::fs::File::open("/dev/null").unwrap().into()).contains("not a memfd"));
    assert!(refusal(&|| memfd(PAGE_SIZE, &sealed[..1])).contains("expected F_SEAL_SHRINK and F_SEAL_GROW"));
    assert!(refusal(&|| memfd(2 * PAGE_SIZE, &sealed)).contains("8192 bytes; expected 4096"));
    assert!(refusal(&|| memfd(PAGE_SIZE, &sealed)).contains("begins with"));
    assert!(refusal(&|| memfd(PAGE_SIZE, &[sealed[0], sealed[1], FileSeal::SealWrite])).contains("mapping"));
}

#[test]
fn a_word_of_another_version_or_without_a_state_is_refused() {
    let (source, fd) = Ownership::create().unwrap();
    source.page().word().store(8, std::sync::atomic::Ordering::Release);
    assert!(Ownership::from_fd(&fd).unwrap_err().to_string().contains("holds 0x8"));
    assert!(source.take_back().is_err() && source.claim().is_err() && source.cancel().is_err());
    source.page().begin(MAGIC, 2);
    let error = Ownership::from_fd(&fd).unwrap_err().to_string();
    assert!(error.contains("version 2; this build reads version 1"), "{error}");
}

#[test]
fn a_page_is_mapped_where_the_granularity_allows() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    let page = SharedPage::map(file.as_fd(), (4 << 20) - PAGE_SIZE, 2 << 20).unwrap();
    page.begin(MAGIC, VERSION);
    let same = SharedPage::map(file.as_fd(), (4 << 20) - PAGE_SIZE, PAGE_SIZE).unwrap();
    same.check(MAGIC, VERSION).unwrap();
    for (offset, granularity) in [(1, 4096), (4096, 4095), (4096, 512), (4096, 0), (!4095, 4096)] {
        let error = SharedPage::map(file.as_fd(), offset, granularity).unwrap_err();
        assert!(matches!(error, PageError::Place { .. }), "{offset:#x} by {granularity:#x}: {error}");
    }
}
