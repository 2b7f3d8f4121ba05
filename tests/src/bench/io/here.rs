//! On this machine's own `/dev/kvm`.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use super::place::{Other, Place};
use super::table::Report;
use super::{Options, lab, turns};
use crate::harness::host::binary;
use crate::lab::image;
use crate::lab::scenario::Kernel;

/// Measures there: in a network namespace of its own, on images in the system's directory for temporary files, which
/// are not in RAM where direct I/O is to mean something.
pub fn run(options: &Options) -> Result<Report> {
    unshare(CloneFlags::CLONE_NEWNET).context("entering a network namespace (this needs root)")?;
    let (directory, images) = (lab::fast_directory()?, tempfile::tempdir()?);
    let path = |name: &str| directory.path().join(name);
    lab::guest_initrd(&path("guest.cpio"))?;
    let disk = |number: usize| {
        let path = images.path().join(number.to_string());
        lab::disk(&path).map(|()| path)
    };
    let place = Place {
        cpr_load: binary("cpr-load")?,
        other: match &options.against {
            Some(other) => Other::Ours(other.clone()),
            None => Other::Qemu { root: None, iothread: options.iothread },
        },
        kernel: image::kernel(Kernel::Lab)?,
        initrd: path("guest.cpio"),
        directory: path("run"),
        disks: (0..Place::disks_needed(options)).map(disk).collect::<Result<_>>()?,
        vhost: Path::new("/dev/vhost-net").exists(),
        rounds: options.rounds,
        ms: options.time,
        only: options.only,
    };
    turns::run(&place, |what| eprintln!("{what}"))
}
