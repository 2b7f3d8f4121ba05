//! Unit tests that need a kernel of the lab's: those of `vmm-core` that are marked as ignored everywhere else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Where the host's RAM disk has them.
pub const UNITS: &str = "/units";

/// Builds them; gives the program.
pub fn build() -> Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["test", "--quiet", "-p", "vmm-core", "--lib", "--no-run", "--message-format=json"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(output.status.success(), "vmm-core's unit tests do not build: {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    let program = program.context("cargo names no program of vmm-core's unit tests")?;
    Ok(program)
}

/// Runs those whose names contain one of these, inside the lab's host. None is no success.
pub fn run(names: &[String]) -> Result<()> {
    let output = Command::new(UNITS)
        .args(["--ignored", "--test-threads=1"])
        .args(names)
        .env("CPR_REQUIRE", "lab")
        .output()
        .context("running the unit tests")?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("test ")).for_each(|line| println!("{line}"));
    if !output.status.success() {
        bail!("unit tests failed:\n{said}{}", String::from_utf8_lossy(&output.stderr));
    }
    ensure!(!said.contains(" 0 passed"), "no unit test has {names:?} in its name");
    Ok(())
}
