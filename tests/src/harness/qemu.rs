//! QEMU, as the second opinion and as what is compared with.

use std::process::Command;

use anyhow::{Context, ensure};

/// The QEMU that is used.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The version of the QEMU on this machine (`(10, 0)`), if there is one.
pub fn version() -> anyhow::Result<(u32, u32)> {
    let output =
        Command::new(PROGRAM).arg("--version").output().with_context(|| format!("running {PROGRAM}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.split_whitespace().nth(3).unwrap_or_default();
    let mut parts = number.split('.').map_while(|part| part.parse().ok());
    let version = parts.next().zip(parts.next());
    ensure!(output.status.success(), "{PROGRAM} --version failed");
    version.with_context(|| format!("{PROGRAM} --version says '{}'", text.trim()))
}
