//! `resume`.

use std::process::ExitCode;

use anyhow::Context;
use vmm_core::cpr::exec::arrive::ArriveError;
use vmm_core::cpr::transfer::target::TargetError;
use vmm_core::owner::{Ended, Options, Owner, OwnerError};

use super::ended;
use crate::flags::Resume;

/// Takes a guest over and serves it to its end.
pub fn resume(resume: Resume) -> anyhow::Result<ExitCode> {
    let Resume { from, set, monitor, paused, lazy, early } = resume;
    let options = Options { monitor, paused, set, lazy, early, ..Options::default() };
    match Owner::new(options)?.resume(from) {
        // It was only asked whether it could, and it could.
        Err(OwnerError::Transfer(TargetError::Probe)) => Ok(ExitCode::SUCCESS),
        Err(OwnerError::Exec(ArriveError::GuestEnded)) => Ok(ended(Ended::GuestEnded)),
        Err(OwnerError::Reboot(why)) => Err(why).context("nothing was loaded, and no guest was touched"),
        result => Ok(ended(result?)),
    }
}
