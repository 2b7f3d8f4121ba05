//! The images of a guest's disks.
//!
//! A guest on QEMU itself has them as its disks; with a host between, the host has them, and the guest has the host's
//! block devices. Either way they lie outside afterwards, where they can be checked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::delay;
use super::scenario::{Disk, Guest};

/// The device that a machine's disk is, in the order of the images.
pub fn device(index: usize) -> String {
    format!("vd{}", char::from(b'a' + index as u8))
}

/// Where the host has a guest's disk.
pub fn path(index: usize, disk: &Disk) -> PathBuf {
    if disk.delay_ms > 0 { delay::path(&device(index)) } else { Path::new("/dev").join(device(index)) }
}

/// Makes those slow, in the host, that are to be.
pub fn slow_down(guest: &Guest) -> Result<()> {
    for (index, disk) in guest.disks.iter().enumerate().filter(|(_, disk)| disk.delay_ms > 0) {
        let (name, by) = (device(index), Duration::from_millis(disk.delay_ms));
        delay::make(&name, &Path::new("/dev").join(&name), by)
            .with_context(|| format!("slowing {name} down"))?;
    }
    Ok(())
}

/// Makes the images of a guest's disks in a directory, new ones each time.
pub fn make(directory: &Path, guest: &Guest) -> Result<Vec<PathBuf>> {
    let image = |(index, disk): (usize, &Disk)| {
        let path = directory.join(format!("{}.img", device(index)));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        file.set_len(disk.size_mib << 20).with_context(|| format!("sizing {}", path.display()))?;
        if disk.ext4 {
            tool("mke2fs", &["-q", "-F", "-t", "ext4"], &path)?;
        }
        Ok(path)
    };
    guest.disks.iter().enumerate().map(image).collect()
}

/// What is wrong with the file systems on the images, once the guest has powered off.
pub fn check(guest: &Guest, images: &[PathBuf]) -> Vec<String> {
    let with_ext4 = guest.disks.iter().zip(images).filter(|(disk, _)| disk.ext4);
    with_ext4
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
