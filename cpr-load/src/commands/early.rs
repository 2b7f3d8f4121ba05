//! `early`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmm_core::cpr::liveupdate;
use vmm_core::cpr::reboot::{Place, waiting};
use vmm_core::monitor::paths;
use vmm_core::owner::early::find;

use crate::flags::Early;
use crate::shelter;

/// What the processes are called: by the `@` systemd spares them when it changes its root (<https://systemd.io/ROOT_STORAGE_DAEMONS/>).
const NAME: &str = "@cpr-load";
/// How long a host's boot may be held up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Lets each guest go on that was saved and waits, in a process of its own that its unit takes it over from. One that cannot go on yet
/// waits for its unit.
pub fn early(early: Early) -> anyhow::Result<ExitCode> {
    let Early { names, saved, outlive_root } = early;
    if names.is_empty() {
        tracing::info!("no guest is configured: none is resumed early");
        return Ok(ExitCode::SUCCESS);
    }
    if outlive_root {
        return shelter::enter(&names).map(|never| match never {});
    }
    let (done, outcomes) = mpsc::channel();
    for name in &names {
        let (name, saved, done) = (name.clone(), saved.clone(), done.clone());
        thread::spawn(move || {
            let outcome = resume(&name, saved);
            let failed = outcome.is_err();
            match outcome {
                Ok(Some(pid)) => println!("guest '{name}' is here: process {pid}"),
                Ok(None) => tracing::info!("guest '{name}' was not saved: it is not resumed early"),
                Err(error) => tracing::error!("guest '{name}' is not resumed early: {error:#}"),
            }
            // Without a listener the time is up.
            let _ = done.send(failed);
        });
    }
    let deadline = Instant::now() + PATIENCE;
    let mut code = ExitCode::SUCCESS;
    for _ in &names {
        match outcomes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(false) => {}
            Ok(true) => code = ExitCode::FAILURE,
            Err(_) => bail!("not all guests are there after {PATIENCE:?}; they are not waited for any more"),
        }
    }
    Ok(code)
}

/// Starts a process for a guest, if it waits, and says which that is once the guest is there.
fn resume(name: &str, saved: Option<PathBuf>) -> anyhow::Result<Option<u32>> {
    let place = match saved {
        Some(saved) => waiting::find(name, &saved)?,
        None => liveupdate::is_waiting(name)?.then(|| Place::LiveUpdate(name.to_owned())),
    };
    let Some(place) = place else { return Ok(None) };
    let from = match &place {
        Place::File(path) => format!("file:{}", path.display()),
        Place::LiveUpdate(_) => place.to_string(),
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).args(["resume", "--early", "--from", &from]);
    command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    // It is nobody's service: its guest's unit comes later.
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
    let child = command.spawn().context("starting a process for it")?;
    settle(child, &paths::socket_of(name)).map(Some)
}

/// Waits until a process has its guest, or has ended.
fn settle(mut child: Child, monitor: &Path) -> anyhow::Result<u32> {
    loop {
        if let Some(status) = child.try_wait().context("waiting for its process")? {
            bail!("its process ended with {status}, for what was said before; it waits where it was");
        }
        // Whoever else listens there is in its way, and its process ends.
        if let Ok(Some(info)) = find(monitor)
            && info.pid == child.id()
        {
            return Ok(info.pid);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
