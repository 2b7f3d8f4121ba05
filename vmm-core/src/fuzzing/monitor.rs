//! What a client of the monitor is answered.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Uuid;
use crate::cpr::blockers::Blocker;
use crate::monitor::{
    CheckRequest, CommandError, Control, CpuInfoFast, Destination, HandoverReport, Incoming,
    MigrateCapabilities, MigrateParameters, MigrateParametersUpdate, MigrationInfo, RunState, answer_all,
};

/// A machine that does as it is told.
struct Obedient;

type Done = Result<(), CommandError>;

impl Control for Obedient {
    fn name(&self) -> String {
        "obedient".into()
    }
    fn uuid(&self) -> Uuid {
        Uuid([7; 16])
    }
    fn run_state(&self) -> RunState {
        RunState::Running
    }
    fn cpus(&self) -> Vec<CpuInfoFast> {
        vec![CpuInfoFast { cpu_index: 0, thread_id: 42 }]
    }
    fn stop(&self) -> Done {
        Ok(())
    }
    fn cont(&self) -> Done {
        Ok(())
    }
    fn system_wakeup(&self) -> Done {
        Ok(())
    }
    fn stay_awake(&self, _time: Duration) -> Done {
        Ok(())
    }
    fn system_powerdown(&self) -> Done {
        Ok(())
    }
    fn system_reset(&self) -> Done {
        Ok(())
    }
    fn balloon(&self, _bytes: u64) -> Done {
        Ok(())
    }
    fn balloon_actual(&self) -> Result<u64, CommandError> {
        Ok(1 << 30)
    }
    fn quit(&self) -> Done {
        Ok(())
    }
    fn migration(&self) -> MigrationInfo {
        MigrationInfo::default()
    }
    fn migrate_parameters(&self) -> MigrateParameters {
        MigrateParameters::default()
    }
    fn migrate_set_parameters(&self, update: MigrateParametersUpdate) -> Done {
        MigrateParameters::default().apply(update);
        Ok(())
    }
    fn migrate_capabilities(&self) -> MigrateCapabilities {
        MigrateCapabilities::default()
    }
    fn migrate_set_capabilities(&self, _capabilities: MigrateCapabilities) -> Done {
        Ok(())
    }
    fn migrate(&self, _destination: Destination, _wake: bool) -> Done {
        Ok(())
    }
    fn migrate_incoming(&self, _from: Incoming) -> Done {
        Ok(())
    }
    fn migrate_cancel(&self) -> Done {
        Ok(())
    }
    fn check(&self, _request: &CheckRequest) -> Result<Vec<Blocker>, CommandError> {
        Ok(vec![Blocker::new("pc.ram", "would not survive")])
    }
    fn agent(&self) -> Result<PathBuf, CommandError> {
        Ok("/run/agent".into())
    }
    fn report(&self) -> Option<HandoverReport> {
        None
    }
}

/// Answers what a client sends: the first byte says in which two pieces the rest comes.
pub fn answer_client(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    answer_all(&Obedient, bytes.split_at(usize::from(*cut).min(bytes.len())));
}
