//! The size and alignment of a device-DAX device. `fstat` does not know them; sysfs does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

/// What a DAX device can be mapped as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of the device.
    pub(super) size: u64,
    /// What every address, offset and length of a mapping is a multiple of.
    pub(super) align: u64,
}

/// The geometry of an open DAX device. `Ok(None)` if it is something else.
pub(super) fn geometry(file: &File) -> io::Result<Option<Geometry>> {
    let meta = file.metadata()?;
    if !meta.file_type().is_char_device() {
        return Ok(None);
    }
    let rdev = meta.rdev();
    from_sysfs(Path::new(&format!("/sys/dev/char/{}:{}", major(rdev), minor(rdev))))
}

fn from_sysfs(dir: &Path) -> io::Result<Option<Geometry>> {
    let subsystem = fs::read_link(dir.join("subsystem"))?;
    if subsystem.file_name().is_none_or(|name| name != "dax") {
        return Ok(None);
    }
    let number = |attribute: &str| {
        let text = fs::read_to_string(dir.join(attribute))?;
        let text = text.trim();
        text.parse::<u64>()
            .map_err(|_| io::Error::other(format!("{attribute} of the DAX device is '{text}'")))
    };
    let geometry = Geometry { size: number("size")?, align: number("align")? };
    if !geometry.align.is_power_of_two() {
        return Err(io::Error::other(format!("align of the DAX device is {}", geometry.align)));
    }
    Ok(Some(geometry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(subsystem: &str, size: &str, align: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(format!("../../../../bus/{subsystem}"), dir.path().join("subsystem"))
            .unwrap();
        fs::write(dir.path().join("size"), size).unwrap();
        fs::write(dir.path().join("align"), align).unwrap();
        dir
    }

    #[test]
    fn size_and_alignment_come_from_sysfs() {
        let dir = device("dax", "132120576\n", "2097152\n");
        let expected = Geometry { size: 132_120_576, align: 2 << 20 };
        assert_eq!(from_sysfs(dir.path()).unwrap(), Some(expected));
    }

    #[test]
    fn a_device_of_another_subsystem_is_no_dax_device() {
        assert_eq!(from_sysfs(device("mem", "1", "1").path()).unwrap(), None);
        assert_eq!(geometry(&File::open("/dev/null").unwrap()).unwrap(), None);
    }

    #[test]
    fn a_geometry_that_is_no_number_is_refused() {
        assert!(from_sysfs(device("dax", "many", "2097152").path()).is_err());
        assert!(from_sysfs(device("dax", "4096", "0").path()).is_err());
    }
}
