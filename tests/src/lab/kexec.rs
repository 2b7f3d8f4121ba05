//! The host's way into its next kernel, and what it finds there.
//!
//! 1. What must outlive the kernel lies on a disk of the host's, at [`KEPT`]: the kernels that come next with their RAM disks,
//!    saved guests, and how far the scenario has got ([`Progress`]).
//! 2. The next kernel gets the command line of this one, and with it the same memory set aside for [`dax`](super::dax).
//! 3. A TSC goes on counting over a kexec, and is all that does so exactly: [`Mark`].

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::sync;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_core::cpr::report::PhaseTime;
use vmm_core::x86::clock::host_tsc;

use super::console::Heard;
use super::paths::GUESTS;
use super::report::Report;
use super::scenario::{Kernel, Scenario};
use super::steps::{HandOver, Kept, milliseconds};
use super::{disks, image};

/// Where the host has what outlives its kernel.
pub const KEPT: &str = "/var/lib/cpr";
/// The disk's size: room for two kernels with their RAM disks, and for saved guests with what they use of their RAM.
const SIZE_MIB: u64 = 2048;

/// How far the scenario has got when the host goes into its next kernel.
#[derive(Serialize, Deserialize)]
pub struct Progress {
    /// Which of the single steps is under way.
    pub step: usize,
    /// What was seen before it.
    pub begun: Kept,
    /// Of the steps before it.
    pub report: Report,
    /// How many kernel messages there were when the first handover began.
    pub messages_before: Option<usize>,
    /// What the guest had said.
    pub heard: Heard,
    /// When the step was begun.
    pub started: Mark,
    /// When the guest was saved.
    pub saved: Mark,
}

fn progress_of(whose: &str) -> PathBuf {
    Path::new(KEPT).join(format!("{whose}.progress"))
}

/// Writes down for the next kernel how far a guest, or the scenario, has got.
pub fn keep_progress(whose: &str, progress: &impl Serialize) -> Result<()> {
    fs::write(progress_of(whose), serde_json::to_vec(progress)?)
        .context("writing down how far the scenario has got")
}

/// What the kernel before this one has written down, if there was one; it is there once.
pub fn take_progress<T: DeserializeOwned>(whose: &str) -> Result<Option<T>> {
    let text = match fs::read(progress_of(whose)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("reading how far the scenario has got"),
    };
    fs::remove_file(progress_of(whose))?;
    serde_json::from_slice(&text).context("reading how far the scenario has got")
}

/// The next kernel's share of a step.
pub struct Arrival {
    /// What the kernel before has written.
    pub progress: Progress,
    /// When this one's clock began.
    booted: Mark,
    loading: Mark,
    loaded: Mark,
}

impl Arrival {
    /// Takes what the kernel before has written, if there was one, and loads the guest; says what it is loaded to.
    pub fn load<T>(guest: &str, load: impl FnOnce() -> Result<T>) -> Result<Option<(Self, T)>> {
        let Some(progress) = take_progress::<Progress>(guest)? else { return Ok(None) };
        let khz = progress.started.khz;
        let (loading, booted) = (Mark::now(khz), Mark::of_this_kernel(Duration::ZERO, khz)?);
        let owner = load()?;
        Ok(Some((Self { progress, booted, loading, loaded: Mark::now(khz) }, owner)))
    }

    /// How long it all took, and each part.
    pub fn handed_over(&self) -> HandOver {
        let Progress { started, saved, .. } = &self.progress;
        let marks = [*started, *saved, self.booted, self.loading, self.loaded];
        let phases = Mark::phases(&["save", "kexec", "boot", "load"], &marks);
        HandOver { downtime: None, total: milliseconds(self.loaded.since(started)), phases }
    }
}

/// A moment by the host's TSC.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Mark {
    tsc: u64,
    /// How fast it counts.
    khz: f64,
}

impl Mark {
    /// Now, by a TSC that counts so fast.
    pub fn now(khz: f64) -> Self {
        Self { tsc: host_tsc(), khz }
    }

    /// A moment of this process's, by a TSC that counts so fast.
    pub fn at(instant: Instant, khz: f64) -> Self {
        Self::now(khz).before(instant.elapsed())
    }

    /// The moment so long after this kernel's clock began.
    pub fn of_this_kernel(after: Duration, khz: f64) -> Result<Self> {
        Ok(Self::now(khz).before(up()?.saturating_sub(after)))
    }

    /// What lies between moments, by its names.
    pub fn phases(names: &[&str], marks: &[Self]) -> Vec<PhaseTime> {
        let between = |(name, marks): (&&str, &[Self])| PhaseTime {
            phase: (*name).to_owned(),
            us: marks[1].since(&marks[0]).as_micros() as u64,
        };
        names.iter().zip(marks.windows(2)).map(between).collect()
    }

    /// How fast it counts, in kHz.
    pub fn khz(&self) -> f64 {
        self.khz
    }

    /// The moment that was so much earlier.
    fn before(&self, by: Duration) -> Self {
        let cycles = by.as_secs_f64() * self.khz * 1e3;
        Self { tsc: self.tsc.saturating_sub(cycles as u64), ..*self }
    }

    /// How long ago it was.
    pub fn elapsed(&self) -> Duration {
        Self::now(self.khz).since(self)
    }

    /// How long another one was before it.
    pub fn since(&self, earlier: &Self) -> Duration {
        Duration::from_secs_f64(self.tsc.saturating_sub(earlier.tsc) as f64 / (earlier.khz * 1e3))
    }

    /// The same moment for a process that may have begun after it.
    pub fn instant(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.elapsed()).unwrap_or(now)
    }
}

/// How fast the TSC counts: it is compared with the monotonic clock for as long as this lives.
pub struct Rate {
    tsc: u64,
    since: Instant,
}

impl Rate {
    /// Begins.
    pub fn begin() -> Self {
        Self { tsc: host_tsc(), since: Instant::now() }
    }

    /// In kHz.
    pub fn khz(&self) -> f64 {
        (host_tsc() - self.tsc) as f64 / (self.since.elapsed().as_secs_f64() * 1e3)
    }
}

/// How long ago this kernel's clock began.
pub fn up() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the clock")?.into())
}

/// Where the disk has a kernel and its RAM disk.
pub fn images(kernel: Kernel) -> [PathBuf; 2] {
    let at = |what: &str| Path::new("kernels").join(format!("{kernel}.{what}"));
    [at("image"), at("initrd")]
}

/// Makes the image of the disk, outside, with all kernels that come next.
pub fn disk(
    directory: &Path,
    scenario: &Scenario,
    guest: &Path,
    guest_initrd: &Path,
) -> Result<Option<PathBuf>> {
    let next = scenario.host.as_ref().map_or(&[][..], |host| &host.next);
    if next.is_empty() {
        return Ok(None);
    }
    let tree = directory.join("kept");
    fs::create_dir_all(tree.join("kernels"))?;
    for kernel in next {
        let [to, initrd] = images(*kernel).map(|path| tree.join(path));
        let from = image::kernel(*kernel)?;
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        image::host(&initrd, scenario, &from, guest, guest_initrd)?;
    }
    let path = directory.join("kept.img");
    disks::image_of(&path, SIZE_MIB, &tree)?;
    fs::remove_dir_all(&tree)?;
    Ok(Some(path))
}

/// Mounts the disk, which comes after the guest's.
pub fn mount_kept(scenario: &Scenario) -> Result<()> {
    let disk = Path::new("/dev").join(disks::nth(disks::virtio(&scenario.guest)));
    fs::create_dir_all(KEPT)?;
    mount(Some(&disk), KEPT, Some("ext4"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {}", disk.display()))
}

/// Whether this kernel is the first that comes after another, and nobody has asked this before.
pub fn is_first_arrival() -> Result<bool> {
    let asked = Path::new(KEPT).join("arrived");
    if asked.exists() || !progress_of(GUESTS[0]).exists() {
        return Ok(false);
    }
    fs::write(&asked, "").context("writing down that the host has arrived")?;
    Ok(true)
}

/// Goes into a kernel; returns only if that fails.
pub fn go(kernel: Kernel) -> Result<Infallible> {
    load_next(kernel)?;
    go_into_loaded()
}

/// Loads the kernel that comes next.
pub fn load_next(kernel: Kernel) -> Result<()> {
    let files = images(kernel).map(|path| {
        let path = Path::new(KEPT).join(path);
        File::open(&path).with_context(|| format!("opening {}", path.display()))
    });
    let [image, initrd] = files;
    let cmdline = fs::read_to_string("/proc/cmdline").context("reading the command line")?;
    load(&image?, &initrd?, cmdline.trim()).with_context(|| format!("loading the kernel {kernel}"))
}

/// Goes into the kernel that is loaded; returns only if that fails.
pub fn go_into_loaded() -> Result<Infallible> {
    println!("going into the next kernel");
    // Whatever else is mounted stays so.
    sync();
    umount2(KEPT, MntFlags::empty()).with_context(|| format!("unmounting {KEPT}"))?;
    reboot(RebootMode::RB_KEXEC).context("kexec")?;
    bail!("kexec came back")
}

/// `kexec_file_load(2)`.
fn load(image: &File, initrd: &File, cmdline: &str) -> Result<()> {
    let cmdline = CString::new(cmdline)?;
    let length = cmdline.as_bytes_with_nul().len();
    // SAFETY: the descriptors are open and the string is as long as said, for the whole call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            image.as_raw_fd(),
            initrd.as_raw_fd(),
            length,
            cmdline.as_ptr(),
            0,
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_as_far_apart_as_their_counts_say() {
        let [earlier, later] = [5_000_000, 7_500_000].map(|tsc| Mark { tsc, khz: 1000.0 });
        assert_eq!(later.since(&earlier), Duration::from_millis(2500));
        assert_eq!(earlier.since(&later), Duration::ZERO);
        assert_eq!(later.before(Duration::from_secs(1)).tsc, 6_500_000);
        let now = Mark::now(1000.0);
        assert!(now.instant() <= Instant::now() && now.tsc > 0);
    }
}
