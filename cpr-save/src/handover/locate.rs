//! Where is the guest?

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use vmm_core::cpr::Mode;
use vmm_core::monitor::client::ClientError;
use vmm_core::monitor::{MigrationStatus, RunState};

use crate::exit::Failure;
use crate::flags::Plan;
use crate::guest::Guest;

/// How long a VMM may take to take its guest back, or QEMU to come back after executing itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a VMM may be away that keeps its clients when it executes itself.
const SHORT: Duration = Duration::from_secs(2);

/// Where the guest is.
pub enum Place {
    /// Where it was.
    Source(RunState, anyhow::Error),
    /// Where it should go; this is who answers for it now.
    Moved(Guest),
    /// It cannot be found out.
    Unknown(anyhow::Error),
}

impl Place {
    /// The failure that this place of the guest means.
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Source(state, error) => Failure::InSource { state, error },
            Self::Unknown(error) => Failure::Unknown(error),
            Self::Moved(_) => Failure::Unknown(anyhow!("the guest has moved, but nobody saw it arrive")),
        }
    }
}

/// Finds the guest after the connection to its monitor was lost: asks whoever answers there now. `threads` ran its vCPUs
/// before: the same threads mean the same process. `keeps_clients` is whether the VMM would have kept the connection.
pub fn after_loss(
    vm: &Path,
    plan: &Plan,
    keeps_clients: bool,
    threads: &[i32],
    lost: anyhow::Error,
) -> Place {
    let comes_back = plan.mode == Mode::CprExec && !keeps_clients;
    let deadline = Instant::now() + if comes_back { PATIENCE } else { SHORT };
    let answer = loop {
        match ask(vm, threads, deadline) {
            // It answered while it was going down, or is not up yet.
            Err(error) if error.is_lost() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            answer => break answer,
        }
    };
    match answer {
        Ok((guest, true, state)) if runs(state) || state == RunState::Postmigrate => Place::Moved(guest),
        Ok((_, false, state)) if runs(state) => Place::Source(state, lost),
        Ok((_, _, state)) => Place::Unknown(
            lost.context(format!("the connection was lost, and who answers now is in state {state}")),
        ),
        Err(error) => {
            let error = anyhow::Error::from(error);
            let lost = lost.context(format!("the connection was lost, and nobody answers now ({error:#})"));
            Place::Unknown(match &plan.channels.main {
                Some(place) if plan.mode == Mode::CprReboot => lost.context(format!(
                    "whether the guest waits there is told by cpr-load check --from {place}"
                )),
                _ => lost,
            })
        }
    }
}

/// Who answers now, whether the handover was done, and the run state.
fn ask(vm: &Path, threads: &[i32], deadline: Instant) -> Result<(Guest, bool, RunState), ClientError> {
    let mut guest = Guest::try_connect(vm, deadline.saturating_duration_since(Instant::now()))?;
    let state = settled(&mut guest)?;
    let done = match guest.migration()?.status {
        MigrationStatus::Completed if state == RunState::Postmigrate => true,
        // A VMM that took a guest in says completed too: that one, or an earlier one.
        MigrationStatus::Completed | MigrationStatus::None => {
            !guest.threads()?.iter().any(|thread| threads.contains(thread))
        }
        _ => false,
    };
    Ok((guest, done, state))
}

/// Says where the guest is after a handover that the VMM says did not happen.
pub fn after_failure(guest: &mut Guest, error: anyhow::Error) -> Failure {
    match settled(guest) {
        Ok(state) if runs(state) => Failure::InSource { state, error },
        Ok(state) => Failure::Unknown(error.context(format!("the source is in state {state}"))),
        Err(unknown) => {
            let unknown = anyhow::Error::from(unknown);
            Failure::Unknown(error.context(format!("the source does not answer ({unknown:#})")))
        }
    }
}

fn runs(state: RunState) -> bool {
    matches!(state, RunState::Running | RunState::Paused | RunState::Suspended | RunState::Prelaunch)
}

/// The run state, once a handover that is still under way, or a guest that is being taken back, has come to an end.
fn settled(guest: &mut Guest) -> Result<RunState, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = guest.run_state()?;
        let status = guest.migration()?.status;
        let over = !matches!(state, RunState::FinishMigrate | RunState::Inmigrate)
            && (status.is_final() || status == MigrationStatus::None);
        if over || Instant::now() > deadline {
            return Ok(state);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
