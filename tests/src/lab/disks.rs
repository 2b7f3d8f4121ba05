//! The images of a guest's disks.
//!
//! A guest on QEMU itself has them as its disks; with a host between, the host has them, and the guest has the host's
//! block devices, or the host's NVMe disks themselves, which are [`assigned`] to it. Either way they lie outside afterwards, where they can be checked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::assigned::{self, Assigned};
use super::delay;
use super::scenario::{Disk, Guest};

/// The device that a guest's root is, and that the host has it as.
pub const ROOT: &str = "vda";

/// The device that one of a guest's disks under load is, and that the host has it as. A root comes before them.
pub fn device(guest: &Guest, index: usize) -> String {
    nth(index + usize::from(guest.root.is_some()))
}

/// The block device that comes after so many others.
pub fn nth(before: usize) -> String {
    format!("vd{}", char::from(b'a' + before as u8))
}

/// Where the host has a guest's disk.
pub fn path(guest: &Guest, index: usize, disk: &Disk) -> PathBuf {
    let device = device(guest, index);
    if disk.delay_ms > 0 { delay::path(&device) } else { Path::new("/dev").join(device) }
}

/// Makes those slow, in the host, that are to be.
pub fn slow_down(guest: &Guest) -> Result<()> {
    for (index, disk) in guest.disks.iter().enumerate().filter(|(_, disk)| disk.delay_ms > 0) {
        let (name, by) = (device(guest, index), Duration::from_millis(disk.delay_ms));
        delay::make(&name, &Path::new("/dev").join(&name), by)
            .with_context(|| format!("slowing {name} down"))?;
    }
    Ok(())
}

/// How many of a guest's disks are virtio disks, which come before those that are assigned to it.
pub fn virtio(guest: &Guest) -> usize {
    guest.disks.len() + usize::from(guest.root.is_some())
}

/// Makes the images of a guest's disks in a directory, new ones each time: that of its root first, those that are assigned
/// to it last.
pub fn make(directory: &Path, guest: &Guest) -> Result<Vec<PathBuf>> {
    let root = guest.root.map(|root| {
        let path = directory.join(format!("{ROOT}.img"));
        root.copy(&path).map(|()| path)
    });
    let virtio =
        |(index, disk): (usize, &Disk)| image(directory, &device(guest, index), disk.size_mib, disk.ext4);
    let nvme = |(index, disk): (usize, &Assigned)| {
        image(directory, &assigned::block_device(index), disk.size_mib, disk.ext4)
    };
    let virtio = root.into_iter().chain(guest.disks.iter().enumerate().map(virtio));
    virtio.chain(guest.assigned.iter().enumerate().map(nvme)).collect()
}

fn image(directory: &Path, device: &str, size_mib: u64, ext4: bool) -> Result<PathBuf> {
    let path = directory.join(format!("{device}.img"));
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(size_mib << 20).with_context(|| format!("sizing {}", path.display()))?;
    if ext4 {
        tool("mke2fs", &["-q", "-F", "-t", "ext4"], &path)?;
    }
    Ok(path)
}

/// Makes an image of so many MiB at a path, with an ext4 file system that holds a directory's tree.
pub fn image_of(path: &Path, size_mib: u64, tree: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(size_mib << 20).with_context(|| format!("sizing {}", path.display()))?;
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &tree.to_string_lossy()], path)
}

/// What is wrong with the file systems on the images, once the guest has powered off.
pub fn check(guest: &Guest, images: &[PathBuf]) -> Vec<String> {
    let ext4 = guest.root.iter().map(|_| true).chain(guest.disks.iter().map(|disk| disk.ext4));
    let ext4 = ext4.chain(guest.assigned.iter().map(|disk| disk.ext4));
    ext4.zip(images)
        .filter(|(ext4, _)| *ext4)
        .filter_map(|(_, image)| tool("e2fsck", &["-f", "-n"], image).err())
        .map(|error| format!("{error:#}"))
        .collect()
}

fn tool(name: &str, arguments: &[&str], image: &Path) -> Result<()> {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name)
        .env("PATH", search)
        .args(arguments)
        .arg(image)
        .output()
        .with_context(|| format!("running {name} (Debian's package e2fsprogs has it)"))?;
    if !output.status.success() {
        let (said, complaint) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let said = format!("{} {}", said.trim(), complaint.trim()).replace('\n', "; ");
        bail!("{name} {} {} ended with {}: {said}", arguments.join(" "), image.display(), output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn guest() -> Guest {
        toml::from_str(
            "kernel = 'lab'\ncpus = 1\nmemory = '1G'\ndisks = [{ size-mib = 4 }, { size-mib = 8, ext4 = true }]",
        )
        .unwrap()
    }

    #[test]
    fn assigned_disks_come_after_all_others() {
        let directory = tempfile::tempdir().unwrap();
        let text = "assigned = [{ size-mib = 8, ext4 = true }]";
        let mut guest = guest();
        guest.assigned = toml::from_str::<toml::Table>(text).unwrap()["assigned"].clone().try_into().unwrap();
        let images = make(directory.path(), &guest).unwrap();
        assert_eq!(images.len(), 3);
        assert_eq!(images[virtio(&guest)..], [directory.path().join("nvme0n1.img")]);
        let image = File::options().write(true).open(&images[2]).unwrap();
        image.write_all_at(&vec![0; 64 << 10], 4096).unwrap();
        assert_eq!(check(&guest, &images).len(), 1);
    }

    #[test]
    fn a_new_image_is_clean_and_one_with_its_bitmaps_gone_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let images = make(directory.path(), &guest()).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(check(&guest(), &images), Vec::<String>::new());
        let image = File::options().write(true).open(&images[1]).unwrap();
        image.write_all_at(&vec![0; 64 << 10], 4096).unwrap();
        assert_eq!(check(&guest(), &images).len(), 1);
    }
}
