//! The guest as its monitor shows it, whether its VMM is `cpr-load` or QEMU.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmm_core::monitor::client::{Client, ClientError};
use vmm_core::monitor::{CpuInfoFast, HandoverReport, MigrationInfo, RunState};

use crate::exit::Failure;

/// How long a VMM may be silent before it counts as not answering.
const PATIENCE: Duration = Duration::from_secs(10);

/// A guest, reached through its monitor.
pub struct Guest {
    pub client: Client,
    /// Whether the VMM has commands of the name `x-cpr-…`.
    pub has_cpr_commands: bool,
}

impl Guest {
    /// Connects to the guest's monitor.
    pub fn connect(vm: &Path) -> Result<Self, Failure> {
        Self::try_connect(vm, Duration::ZERO)
            .map_err(|error| Failure::Unknown(anyhow::Error::from(error).context("no guest found")))
    }

    /// Connects to the guest's monitor, within `patience` if it is not there at once.
    pub fn try_connect(vm: &Path, patience: Duration) -> Result<Self, ClientError> {
        let mut client = Client::connect_within(vm, patience)?;
        let commands = client.execute_within("query-commands", &json!({}), PATIENCE)?;
        let has_cpr_commands = commands
            .as_array()
            .is_some_and(|list| list.iter().any(|command| command["name"] == "x-cpr-check"));
        Ok(Self { client, has_cpr_commands })
    }

    /// Executes a command.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, ClientError> {
        self.client.execute_within(command, arguments, PATIENCE)
    }

    /// Executes a command and reads its answer.
    pub fn query<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, ClientError> {
        let answer = self.execute(command, &json!({}))?;
        T::deserialize(answer).map_err(|error| ClientError::Protocol(format!("{command}: {error}")))
    }

    /// The run state. One that this build does not know is an internal error of the VMM, as far as we can tell.
    pub fn run_state(&mut self) -> Result<RunState, ClientError> {
        let answer: Value = self.query("query-status")?;
        RunState::deserialize(&answer["status"]).map_err(|_| {
            ClientError::Protocol(format!("query-status: unknown run state {}", answer["status"]))
        })
    }

    /// Its name.
    pub fn name(&mut self) -> Result<String, ClientError> {
        let answer: Value = self.query("query-name")?;
        let name = answer["name"].as_str().map(str::to_owned);
        name.ok_or_else(|| ClientError::Protocol("query-name: the guest has no name".into()))
    }

    /// How the last handover stands.
    pub fn migration(&mut self) -> Result<MigrationInfo, ClientError> {
        let mut answer: Value = self.query("query-migrate")?;
        // QEMU has finer states between setup and the end; to us they are all on the way.
        let known = ["none", "setup", "active", "cancelling", "cancelled", "completed", "failed"];
        if let Some(status) = answer["status"].as_str()
            && !known.contains(&status)
        {
            answer["status"] = json!("active");
        } else if answer["status"].is_null() {
            answer["status"] = json!("none");
        }
        MigrationInfo::deserialize(answer)
            .map_err(|error| ClientError::Protocol(format!("query-migrate: {error}")))
    }

    /// What the last handover came to; `None` where the VMM does not say.
    pub fn report(&mut self) -> Result<Option<HandoverReport>, ClientError> {
        if self.has_cpr_commands { self.query("x-cpr-report") } else { Ok(None) }
    }

    /// The threads that run the vCPUs: they tell one process from another.
    pub fn threads(&mut self) -> Result<Vec<i32>, ClientError> {
        let cpus: Vec<CpuInfoFast> = self.query("query-cpus-fast")?;
        Ok(cpus.into_iter().map(|cpu| cpu.thread_id).collect())
    }

    /// Ends the VMM and waits until it is gone.
    pub fn quit(&mut self) -> anyhow::Result<()> {
        match self.execute("quit", &json!({})) {
            // A VMM that is gone before its answer is written is gone all the same.
            Ok(_) | Err(ClientError::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match self.client.next_event(deadline) {
                Ok(Some(_)) => {}
                Ok(None) => return Err(anyhow!("the VMM did not end within {} s", PATIENCE.as_secs())),
                Err(_) => return Ok(()),
            }
        }
    }

    /// A failure of a command that leaves the guest as it was.
    pub fn failure(&mut self, error: ClientError) -> Failure {
        if error.command_error().is_none() {
            return Failure::Unknown(error.into());
        }
        match self.run_state().context("asking how the guest is") {
            Ok(state) => Failure::InSource { state, error: error.into() },
            Err(unknown) => Failure::Unknown(unknown),
        }
    }
}
