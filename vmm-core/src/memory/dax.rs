//! The size and alignment of a device-DAX device, and where RAM goes in it. `fstat` does not know them; sysfs does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::block::Place;
use super::lock::Extent;
use crate::config::ByteSize;

/// What a DAX device can be mapped as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of the device.
    pub(super) size: u64,
    /// What every address, offset and length of a mapping is a multiple of.
    pub(super) align: u64,
}

impl Geometry {
    /// Where so much RAM goes: at an offset, with its stamp in the unit behind it; without one all of the device is the guest's, whose
    /// stamp is in the last unit. An error is what was found, and what was expected.
    pub(super) fn place(self, size: u64, offset: Option<u64>) -> Result<Place, (String, String)> {
        let Self { size: all, align } = self;
        let last = (all / align).saturating_sub(1) * align;
        let ram = offset.unwrap_or(0);
        let whole = ram.is_multiple_of(align) && size.is_multiple_of(align);
        let end = ram.checked_add(size).filter(|end| whole && *end <= last);
        let place = |stamp, extent| Place { ram, stamp: Some(stamp), extent, last: Some(last) };
        let place = match offset {
            None => end.map(|_| place(last, Extent::All)),
            Some(_) => end
                .and_then(|stamp| stamp.checked_add(align))
                .filter(|end| *end <= last)
                .map(|end| place(end - align, Extent::Part(ram..end))),
        };
        place.ok_or_else(|| {
            let (found, size) = (format!("{} in units of {}", ByteSize(all), ByteSize(align)), ByteSize(size));
            let expected = match offset {
                None => format!("room for {size} of RAM in whole units, and one unit for the stamp"),
                Some(offset) => format!(
                    "room from {} on for {size} of RAM in whole units, one unit for its stamp, and the last one, at {}, for who has what",
                    ByteSize(offset),
                    ByteSize(last)
                ),
            };
            (found, expected)
        })
    }
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
    fn a_part_has_its_stamp_behind_it_and_the_last_unit_is_nobodys() {
        const M: u64 = 1 << 20;
        let device = Geometry { size: 17 * M, align: 2 * M };
        let whole = device.place(14 * M, None).unwrap();
        assert_eq!(whole, Place { ram: 0, stamp: Some(14 * M), extent: Extent::All, last: Some(14 * M) });
        let part = device.place(4 * M, Some(8 * M)).unwrap();
        assert_eq!((part.ram, part.stamp, part.extent), (8 * M, Some(12 * M), Extent::Part(8 * M..14 * M)));
        for (size, offset) in [
            (16 * M, None),
            (3 * M, None),
            (14 * M, Some(0)),
            (4 * M, Some(10 * M)),
            (4 * M, Some(M)),
            (4 * M, Some(!(2 * M - 1))),
            (!(2 * M - 1), Some(2 * M)),
        ] {
            assert!(device.place(size, offset).is_err(), "{size:#x} {offset:#x?}");
        }
        let (found, expected) = device.place(8 * M, Some(8 * M)).unwrap_err();
        assert_eq!(found, "17M in units of 2M");
        assert!(expected.contains("from 8M on for 8M") && expected.contains("at 14M"), "{expected}");
        assert!(Geometry { size: M, align: 2 * M }.place(0, None).is_ok_and(|place| place.last == Some(0)));
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
