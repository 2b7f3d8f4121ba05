//! The server on its own thread, a control that remembers what was asked of it, and clients of every kind.

mod commands;
mod handover;
mod hostile;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use serde_json::Value;

use super::*;
use crate::config::Uuid;
use crate::cpr::blockers::Blocker;
use crate::monitor::client::Client;
use crate::monitor::events::Event;
use crate::monitor::{
    CheckRequest, CommandError, CpuInfoFast, Destination, HandoverReport, Incoming, MigrateCapabilities,
    MigrateParameters, MigrateParametersUpdate, MigrationInfo, RunState,
};

/// Remembers what was asked of it.
struct Fake {
    calls: Mutex<Vec<String>>,
    parameters: Mutex<MigrateParameters>,
    capabilities: Mutex<MigrateCapabilities>,
    events: EventSender,
    taking_in: AtomicBool,
}

impl Fake {
    #[expect(clippy::unnecessary_wraps, reason = "it stands for commands that can fail")]
    fn called(&self, what: String) -> Result<(), CommandError> {
        self.calls.lock().unwrap().push(what);
        Ok(())
    }
}

impl Control for Fake {
    fn name(&self) -> String {
        "web".into()
    }
    fn is_taking_in(&self) -> bool {
        self.taking_in.load(Ordering::Relaxed)
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
    fn stop(&self) -> Result<(), CommandError> {
        self.events.emit(Event::Stop);
        self.called("stop".into())
    }
    fn cont(&self) -> Result<(), CommandError> {
        Err(CommandError::generic("the guest was given away"))
    }
    fn system_wakeup(&self) -> Result<(), CommandError> {
        self.called("system_wakeup".into())
    }
    fn stay_awake(&self, time: Duration) -> Result<(), CommandError> {
        self.called(format!("stay_awake {time:?}"))
    }
    fn system_powerdown(&self) -> Result<(), CommandError> {
        self.called("system_powerdown".into())
    }
    fn system_reset(&self) -> Result<(), CommandError> {
        self.called("system_reset".into())
    }
    fn balloon(&self, bytes: u64) -> Result<(), CommandError> {
        self.called(format!("balloon {bytes}"))
    }
    fn balloon_actual(&self) -> Result<u64, CommandError> {
        Err(CommandError::generic("no balloon"))
    }
    fn quit(&self) -> Result<(), CommandError> {
        self.called("quit".into())
    }
    fn migration(&self) -> MigrationInfo {
        MigrationInfo::default()
    }
    fn migrate_parameters(&self) -> MigrateParameters {
        self.parameters.lock().unwrap().clone()
    }
    fn migrate_set_parameters(&self, update: MigrateParametersUpdate) -> Result<(), CommandError> {
        self.parameters.lock().unwrap().apply(update);
        Ok(())
    }
    fn migrate_capabilities(&self) -> MigrateCapabilities {
        *self.capabilities.lock().unwrap()
    }
    fn migrate_set_capabilities(&self, capabilities: MigrateCapabilities) -> Result<(), CommandError> {
        *self.capabilities.lock().unwrap() = capabilities;
        Ok(())
    }
    fn migrate(&self, destination: Destination, wake: bool) -> Result<(), CommandError> {
        self.called(format!("{destination:?}{}", if wake { ", woken" } else { "" }))
    }
    fn migrate_incoming(&self, from: Incoming) -> Result<(), CommandError> {
        self.called(format!("{from:?}"))
    }
    fn migrate_cancel(&self) -> Result<(), CommandError> {
        self.called("migrate_cancel".into())
    }
    fn check(&self, request: &CheckRequest) -> Result<Vec<Blocker>, CommandError> {
        self.called(format!(
            "check {:?}{}",
            request.destination,
            if request.suspend { ", suspended" } else { "" }
        ))?;
        Ok(vec![Blocker::new("pc.ram", "would not survive")])
    }
    fn agent(&self) -> Result<PathBuf, CommandError> {
        Ok("/run/agent".into())
    }
    fn report(&self) -> Option<HandoverReport> {
        None
    }
}

/// A server on its own thread, listening in a directory of its own.
struct Running {
    server: Arc<Mutex<MonitorServer>>,
    control: Arc<Fake>,
    events: EventSender,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.sock");
        let running = Self::silent(directory, path.clone());
        running.server.lock().unwrap().listen(&path).unwrap();
        running
    }

    /// One that listens nowhere yet.
    fn silent(directory: tempfile::TempDir, path: PathBuf) -> Self {
        let events = EventSender::new().unwrap();
        let control = Arc::new(Fake {
            calls: Mutex::default(),
            parameters: Mutex::default(),
            capabilities: Mutex::default(),
            events: events.clone(),
            taking_in: AtomicBool::new(false),
        });
        let server = Arc::new(Mutex::new(MonitorServer::new(control.clone(), events.clone())));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (server, stop) = (server.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut manager = EventManager::<Arc<Mutex<MonitorServer>>>::new().unwrap();
                manager.add_subscriber(server);
                while !stop.load(Ordering::Relaxed) {
                    manager.run_with_timeout(10).unwrap();
                }
            })
        };
        Self { server, control, events, path, stop, thread: Some(thread), _directory: directory }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    fn raw(&self) -> Raw {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut raw = Raw { stream, input: Vec::new() };
        assert!(raw.line().get("QMP").is_some());
        raw
    }

    /// Stops the loop, as a process does that executes another image.
    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn clients(&self) -> usize {
        self.server.lock().unwrap().clients.len()
    }

    /// Waits until the server has `n` clients.
    fn wait_clients(&self, n: usize) {
        for _ in 0..500 {
            if self.clients() == n {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} clients; expected {n}", self.clients());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}

/// A client that sends what it likes.
struct Raw {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Raw {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The next message.
    fn line(&mut self) -> Value {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).unwrap();
            assert_ne!(n, 0, "the server hung up");
            self.input.extend_from_slice(&buffer[..n]);
        }
    }

    fn negotiate(&mut self) {
        self.send(r#"{"execute": "qmp_capabilities"}"#);
        assert!(self.line().get("return").is_some());
    }
}
