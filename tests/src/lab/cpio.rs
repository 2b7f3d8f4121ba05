//! Writes initial RAM disks: cpio archives in the kernel's "newc" form (Documentation/driver-api/early-userspace).

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An initial RAM disk that is being written.
pub struct Cpio<W: Write> {
    out: W,
    inode: u32,
    written: u64,
}

impl<W: Write> Cpio<W> {
    /// Begins an archive that holds `/dev` and `/dev/console`, without which init has no output.
    pub fn new(out: W) -> io::Result<Self> {
        let mut archive = Self { out, inode: 0, written: 0 };
        archive.directory("dev")?;
        archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
        Ok(archive)
    }

    /// Adds a directory; its parents must be there before it.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file that may be executed.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, EXECUTABLE, (0, 0), content)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} does not fit an initial RAM disk"))
        })?;
        self.inode += 1;
        let links = 1;
        let fields =
            [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, path.len() as u32 + 1, 0];
        let header = fields.map(|field| format!("{field:08x}")).concat();
        self.padded(format!("070701{header}{path}\0").as_bytes())?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        let padding = (self.written.next_multiple_of(4) - self.written) as usize;
        self.out.write_all(&[0; 4][..padding])?;
        self.written += padding as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut bytes = Vec::new();
        let mut archive = Cpio::new(&mut bytes).unwrap();
        archive.file("init", b"12345").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let magics = bytes.windows(6).filter(|window| window == b"070701").count();
        assert_eq!(magics, 4, "dev, dev/console, init and the trailer");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
