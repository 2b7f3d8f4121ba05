//! QEMU in the lab's host: the program, the libraries that it needs and its firmware, in one directory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::harness::qemu::PROGRAM;
use crate::lab::cpio::Cpio;

/// Where the RAM disk has it.
pub const ROOT: &str = "/qemu";

/// What a PC that boots a Linux kernel needs, as far as there is: its BIOS, and what loads the kernel.
const FIRMWARE: [&str; 4] = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "linuxboot.bin"];

/// Adds it to a RAM disk.
pub fn add(archive: &mut Cpio<impl Write>) -> Result<()> {
    archive.directory(ROOT)?;
    let program = find(PROGRAM).with_context(|| format!("no {PROGRAM} in PATH"))?;
    archive.file(&format!("{ROOT}/{PROGRAM}"), &read(&program)?)?;
    let output = Command::new("ldd").arg(&program).output().context("running ldd")?;
    ensure!(output.status.success(), "ldd {} ended with {}", program.display(), output.status);
    for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
        let name = match library {
            Library::Searched(path) => format!("{ROOT}/{}", name(path)?),
            // The program names it by its path.
            Library::Interpreter(path) => {
                let parents: Vec<_> =
                    path.ancestors().skip(1).filter(|parent| parent.parent().is_some()).collect();
                for parent in parents.iter().rev() {
                    archive.directory(&parent.to_string_lossy())?;
                }
                path.to_string_lossy().into_owned()
            }
        };
        archive.file(&name, &read(library.path())?)?;
    }
    let output =
        Command::new(&program).args(["-L", "help"]).output().context("asking QEMU for its firmware")?;
    let directories = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in FIRMWARE {
        let paths = directories.lines().map(|directory| Path::new(directory).join(name));
        if let Some(path) = paths.into_iter().find(|path| path.exists()) {
            archive.file(&format!("{ROOT}/{name}"), &read(&path)?)?;
        }
    }
    Ok(())
}

/// What `ldd` names.
#[derive(Debug, PartialEq, Eq)]
enum Library<'a> {
    /// A library that is looked for by its name.
    Searched(&'a Path),
    /// What loads the program.
    Interpreter(&'a Path),
}

impl Library<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::Searched(path) | Self::Interpreter(path) => path,
        }
    }
}

fn libraries(text: &str) -> impl Iterator<Item = Library<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match (words.next()?, words.next(), words.next()) {
            (_, Some("=>"), Some(path)) if path.starts_with('/') => Some(Library::Searched(Path::new(path))),
            (path, ..) if path.starts_with('/') => Some(Library::Interpreter(Path::new(path))),
            _ => None,
        }
    })
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

fn name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no name", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_what_loads_them() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n";
        let found: Vec<_> = libraries(text).collect();
        assert_eq!(
            found,
            [
                Library::Searched(Path::new("/lib/x86_64-linux-gnu/libc.so.6")),
                Library::Interpreter(Path::new("/lib64/ld-linux-x86-64.so.2")),
            ]
        );
    }
}
