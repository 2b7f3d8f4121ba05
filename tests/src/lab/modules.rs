//! Which of a packaged kernel's modules must be loaded, and in what order.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The directory of modules beside an unpacked kernel package's `boot/vmlinuz-VERSION`; none if everything is built in.
pub fn directory(kernel: &Path) -> Option<PathBuf> {
    let version = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
    let root = kernel.parent()?.parent()?;
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|lib| root.join(lib).join(version))
        .find(|path| path.is_dir())
}

/// The files of the named modules and of all that they need, in the order to load them in.
///
/// A module that the kernel has built in, or does not have, is passed over: what needs it says so.
pub fn with_dependencies(directory: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let files = files(&directory.join("kernel"))?;
    let mut order = Vec::new();
    for name in names {
        visit(&files, name, &mut order)?;
    }
    Ok(order)
}

fn files(directory: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut found = HashMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                found.insert(name.replace('-', "_"), path);
            }
        }
    }
    Ok(found)
}

fn visit(files: &HashMap<String, PathBuf>, name: &str, order: &mut Vec<PathBuf>) -> Result<()> {
    let Some(path) = files.get(&name.replace('-', "_")) else { return Ok(()) };
    if order.contains(path) {
        return Ok(());
    }
    for needed in depends(path)? {
        visit(files, &needed, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// A module as the kernel takes it, unpacked if the package has it compressed.
pub fn content(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let output =
        Command::new(tool).arg("-dcq").arg(path).output().with_context(|| format!("running {tool}"))?;
    if !output.status.success() {
        bail!("{tool} could not unpack {}: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// What a module's `.modinfo` section says that it needs.
fn depends(path: &Path) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let content = content(path)?;
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else { return Ok(Vec::new()) };
    let value = &content[at + KEY.len()..];
    let value = &value[..value.iter().position(|byte| *byte == 0).unwrap_or(0)];
    let names = String::from_utf8_lossy(value);
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
