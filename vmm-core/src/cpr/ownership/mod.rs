//! Ownership of a guest between two processes.
//!
//! 1. At most one process may enter the guest at any instant: who may holds its [`Claim`], and there is one.
//! 2. Until the target has claimed the guest, the source can take it back, whoever died when.
//! 3. No message is needed to decide who owns it, so no lost message can decide it wrongly.
//! 4. After the target's claim everything that the source tries fails, for ever.
//! 5. A claim takes the offer that it was made for: one that was taken back cannot be claimed when a later one stands.
//!
//! Ownership is one word in a page that both processes map: a sealed memfd ([`Ownership::create`]) that is handed over
//! with the other descriptors, or the stamp beside the guest's RAM (`cpr::reboot::stamp`).
//!
//! ```text
//! SOURCE --(source: offer)--> OFFERED --(target: claim, compare-and-swap)--> TARGET
//!    ^                           |
//!    +--(source: take back, compare-and-swap)
//! ```
//!
//! `word` is the whole logic, with no system call in it, over a trait for the one atomic. Its tests run it over all
//! interleavings, with either side dying before each of its steps, by loom:
//!
//! ```text
//! cargo test -p vmm-core --lib ownership::model
//! ```

#[cfg(test)]
mod model;
mod page;
#[cfg(test)]
mod tests;
mod word;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use memfd::{FileSeal, MemfdOptions};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::fstat;

pub(crate) use self::page::SharedPage;
pub use self::page::{PAGE_SIZE, PageError};
pub use self::word::State;

/// What the page of a memfd begins with.
const MAGIC: [u8; 8] = *b"cprowner";

/// Version of the page's layout.
const VERSION: u32 = 1;

/// Why a process does not own the guest, or why the word cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// The target has it: point of no return.
    #[error("the target has claimed the guest: it runs there and can never run here again")]
    ClaimedByTarget,
    /// The source offered it before, and has not taken it back.
    #[error("the guest is offered already; take it back first")]
    Offered,
    /// The source has not offered it.
    #[error("the guest is not offered: the source runs it")]
    NotOffered,
    /// The offer that this side came for was taken back.
    #[error("the offer was taken back: the source has gone on with the guest since")]
    TakenBack,
    /// The word holds none of its values.
    #[error("the ownership word holds {0:#x}, which is no state of it")]
    Corrupt(u32),
    /// The descriptor is something else than an ownership word.
    #[error("ownership word: it is {found}; expected {expected}")]
    Wrong {
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// Its page cannot be used.
    #[error("ownership word: {0}")]
    Page(#[from] PageError),
    /// A system call failed.
    #[error("ownership word: {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl OwnershipError {
    fn io(doing: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self::Io { doing, source: errno.into() }
    }
}

/// The proof that this process owns the guest, needed to enter it. It cannot be copied.
#[derive(Debug)]
#[must_use = "without its claim a guest can be entered by nobody"]
pub struct Claim(());

impl Claim {
    /// The claim of a guest that this process has just built, before anybody else knows of it.
    pub(crate) fn cold_boot() -> Self {
        Self(())
    }
}

/// One side's hold on the ownership word.
#[derive(Debug)]
pub struct Ownership {
    page: SharedPage,
    /// The offer that this side's claim is for.
    offer: u32,
}

impl Ownership {
    /// Makes a new word, in [`State::Source`], and the descriptor that the target needs for it (a memfd of one page,
    /// close-on-exec, sealed against resizing). The word works on without the descriptor.
    pub fn create() -> Result<(Self, OwnedFd), OwnershipError> {
        let wrap = |e| OwnershipError::Io { doing: "making its memfd", source: io::Error::other(e) };
        let options = MemfdOptions::new().allow_sealing(true).close_on_exec(true);
        let memfd = options.create("cpr-ownership").map_err(wrap)?;
        memfd
            .as_file()
            .set_len(PAGE_SIZE)
            .map_err(|source| OwnershipError::Io { doing: "sizing its memfd", source })?;
        memfd
            .add_seals(&[FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal])
            .map_err(|e| OwnershipError::Io { doing: "sealing its memfd", source: io::Error::other(e) })?;
        let fd = OwnedFd::from(memfd.into_file());
        let page = SharedPage::map(fd.as_fd(), 0, PAGE_SIZE)?;
        page.begin(MAGIC, VERSION);
        Ok((Self::over(page)?, fd))
    }

    /// Takes the word from a descriptor that another process sent, after checking that it is one: a memfd of one page
    /// that cannot be resized, of this layout.
    pub fn from_fd(fd: impl AsFd) -> Result<Self, OwnershipError> {
        let fd = fd.as_fd();
        let wrong =
            |found: String, expected: &str| OwnershipError::Wrong { found, expected: expected.into() };
        let seals =
            fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| wrong("not a memfd".into(), "a sealed memfd"))?;
        let seals = SealFlag::from_bits_truncate(seals);
        if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
            return Err(wrong(format!("sealed by {seals:?}"), "F_SEAL_SHRINK and F_SEAL_GROW"));
        }
        let size = fstat(fd).map_err(OwnershipError::io("looking at its size"))?.st_size;
        if size != PAGE_SIZE as i64 {
            return Err(wrong(format!("{size} bytes"), &format!("{PAGE_SIZE} bytes")));
        }
        let page = SharedPage::map(fd, 0, PAGE_SIZE)?;
        page.check(MAGIC, VERSION)?;
        Self::over(page)
    }

    /// The word in a page whose magic and version are right.
    pub(crate) fn over(page: SharedPage) -> Result<Self, OwnershipError> {
        let offer = word::current_offer(page.word())?;
        Ok(Self { page, offer })
    }

    /// Whose the guest is.
    pub fn state(&self) -> Result<State, OwnershipError> {
        word::state(self.page.word())
    }

    /// Source: gives the guest up for the target to claim. All that the target needs to run it must have been loaded.
    ///
    /// An error where it was offered or claimed before: the word is no longer one to offer by.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "who offers the guest must have no claim left to enter it by"
    )]
    pub fn offer(&self, claim: Claim) -> Result<(), OwnershipError> {
        let Claim(()) = claim;
        word::offer(self.page.word())
    }

    /// Source: takes back what it had offered, for whatever reason. The target cannot claim that offer any more.
    ///
    /// After [`OwnershipError::ClaimedByTarget`] the guest runs in the target.
    pub fn take_back(&self) -> Result<Claim, OwnershipError> {
        word::take_back(self.page.word()).map(Claim)
    }

    /// Source: makes sure before an offer that the guest is still here; an error where there is something to
    /// [take back](Self::take_back), or nothing any more.
    pub fn cancel(&self) -> Result<(), OwnershipError> {
        word::cancel(self.page.word())
    }

    /// Target: claims the guest, once, if the offer that this side came for stands. From here on the guest lives or
    /// dies with this process.
    pub fn claim(&self) -> Result<Claim, OwnershipError> {
        word::claim(self.page.word(), self.offer).map(Claim)
    }

    /// Target: an error, as a claim's would be, if the offer that this side came for does not stand. It may be taken back at any
    /// moment after that.
    pub fn check_offer(&self) -> Result<(), OwnershipError> {
        word::check_offer(self.page.word(), self.offer)
    }

    /// The page the word is in.
    pub(crate) fn page(&self) -> &SharedPage {
        &self.page
    }

    /// Owner: makes the word anew, in [`State::Source`], so that no offer made before can be claimed.
    pub(crate) fn renew(&self, _claim: &Claim) {
        word::renew(self.page.word());
    }
}
