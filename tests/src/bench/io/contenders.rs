//! Who is measured: a guest of ours, and the same guest on QEMU or on another one of ours.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_init::measure::{Measured, Order};

use super::place::{Other, Place};
use super::plan::{Device, Part, Test};
use crate::harness::qemu::PROGRAM;
use crate::lab::console::Console;
use crate::lab::net;

/// How long a guest may take to boot.
const BOOT_WITHIN: Duration = Duration::from_mins(2);
/// RAM of a guest, in MiB.
const MEMORY: u32 = 256;

/// One whose guest is up.
pub struct Contender {
    side: u8,
    process: Child,
    console: Console,
}

/// A network of a contender's guest.
struct Network {
    tap: String,
    host: Ipv4Addr,
    guest: Ipv4Addr,
    mac: String,
    vhost: bool,
}

fn network(side: u8, number: u8) -> Network {
    let address = |last| Ipv4Addr::new(10, 77, 2 * side + number, last);
    Network {
        tap: format!("io{side}{number}"),
        host: address(1),
        guest: address(2),
        mac: format!("52:54:00:77:{side:02x}:{number:02x}"),
        vhost: number == 1,
    }
}

fn networks(place: &Place, side: u8) -> Vec<Network> {
    let count = if place.has(Part::Net) { 1 + u8::from(place.vhost) } else { 0 };
    (0..count).map(|number| network(side, number)).collect()
}

/// The disks of a side, each with whether the host's page cache is passed by.
fn disks(place: &Place, side: u8) -> impl Iterator<Item = (&Path, bool)> {
    let first = if place.disks.len() > 2 { 2 * usize::from(side) } else { 0 };
    let disks = if place.has(Part::Block) { place.disks.get(first..first + 2) } else { None };
    disks.unwrap_or_default().iter().map(PathBuf::as_path).zip([true, false])
}

impl Contender {
    /// Boots ours.
    pub fn ours(place: &Place) -> Result<Self> {
        Self::boot(place, 0, ours(place, 0, &place.cpr_load))
    }

    /// Boots the other.
    pub fn other(place: &Place) -> Result<Self> {
        let command = match &place.other {
            Other::Ours(program) => ours(place, 1, program),
            Other::Qemu { root, iothread } => qemu(place, 1, root.as_deref(), *iothread),
        };
        Self::boot(place, 1, command)
    }

    fn boot(place: &Place, side: u8, mut command: Command) -> Result<Self> {
        for Network { tap, host, .. } in networks(place, side) {
            net::make(&tap, 1, host)?;
        }
        let log = place.directory.join(format!("{side}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process =
            command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        let console =
            Console::connect(&serial(place, side), &place.directory.join(format!("{side}.serial")))?;
        let mut this = Self { side, process, console };
        let said = |name: &str| {
            let path = place.directory.join(format!("{side}.{name}"));
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        match this.ready() {
            Ok(()) => Ok(this),
            Err(error) => bail!("{error:#}; it said: {}{}", said("log"), said("serial")),
        }
    }

    fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_WITHIN;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended with {status}");
            }
            match self.console.reply(Duration::from_secs(1)) {
                Ok(reply) => {
                    ensure!(reply == "READY", "its guest said {reply:?}");
                    return Ok(());
                }
                Err(_) if Instant::now() < deadline => {}
                Err(error) => return Err(error).context("its guest did not boot"),
            }
        }
    }

    /// Has the guest measure.
    pub fn measure(&self, test: &Test, ms: u64) -> Result<Measured> {
        let (device, host) = match test.device {
            Device::Disk(number) => (crate::lab::disks::nth(number), Ipv4Addr::UNSPECIFIED),
            Device::Net(number) => (String::new(), network(self.side, number as u8).host),
        };
        let order = Order { task: (test.task)(&device, host), ms };
        let answer = self.console.command(&serde_json::to_string(&order)?)?;
        serde_json::from_str(&answer).with_context(|| format!("{}: the guest said {answer:?}", test.name))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serial(place: &Place, side: u8) -> PathBuf {
    place.directory.join(format!("{side}.sock"))
}

fn cmdline(place: &Place, side: u8) -> String {
    let addresses: Vec<_> = networks(place, side).iter().map(|network| network.guest.to_string()).collect();
    let addresses = if addresses.is_empty() { "on".into() } else { addresses.join(",") };
    format!("console=ttyS0 loglevel=4 panic=-1 guest.bench={addresses}")
}

fn ours(place: &Place, side: u8, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("XDG_RUNTIME_DIR", place.directory.join(side.to_string()));
    command.args(["boot", "--cpus=1", &format!("--name=io{side}")]);
    command.arg(format!("--memory=size={MEMORY}M,backing=memfd"));
    command.arg(format!("--kernel={}", place.kernel.display()));
    command.arg(format!("--initrd={}", place.initrd.display()));
    command.arg(format!("--cmdline={}", cmdline(place, side)));
    command.arg(format!("--serial=unix:{}", serial(place, side).display()));
    for (disk, direct) in disks(place, side) {
        let direct = if direct { "on" } else { "off" };
        command.arg(format!("--device=virtio-blk-pci,path={},direct={direct}", disk.display()));
    }
    for Network { tap, mac, vhost, .. } in networks(place, side) {
        let vhost = if vhost { "on" } else { "off" };
        command.arg(format!("--device=virtio-net-pci,tap={tap},mac={mac},vhost={vhost}"));
    }
    command
}

/// What QEMU is given is what ours has: shared RAM in a memfd, modern devices with a queue each, io_uring.
fn qemu(place: &Place, side: u8, root: Option<&Path>, iothread: bool) -> Command {
    let mut command = Command::new(root.map_or(PROGRAM.into(), |root| root.join(PROGRAM)));
    if let Some(root) = root {
        command.env("LD_LIBRARY_PATH", root).arg("-L").arg(root);
    }
    command.args("-nodefaults -no-user-config -display none -cpu host -smp 1".split(' '));
    command.args(["-machine", "q35,accel=kvm,memory-backend=ram", "-m", &format!("{MEMORY}M")]);
    command.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY}M,share=on")]);
    command.arg("-kernel").arg(&place.kernel).arg("-initrd").arg(&place.initrd);
    command.args(["-append", &cmdline(place, side)]);
    command.args(["-serial", &format!("unix:{},server=on,wait=off", serial(place, side).display())]);
    for (number, (disk, direct)) in disks(place, side).enumerate() {
        let cache = if direct { "none" } else { "writeback" };
        // Ours has the same image, and locks it.
        let image = format!("file={},format=raw,file.locking=off", disk.display());
        command.args(["-drive", &format!("if=none,id=disk{number},cache={cache},aio=io_uring,{image}")]);
        let mut thread = String::new();
        if iothread {
            command.args(["-object", &format!("iothread,id=io{number}")]);
            thread = format!(",iothread=io{number}");
        }
        let device = format!("virtio-blk-pci,drive=disk{number},num-queues=1,disable-legacy=on{thread}");
        command.args(["-device", &device]);
    }
    for (number, Network { tap, mac, vhost, .. }) in networks(place, side).into_iter().enumerate() {
        let vhost = if vhost { "on" } else { "off" };
        let tap = format!("tap,id=net{number},ifname={tap},script=no,downscript=no,vhost={vhost}");
        let device = format!("virtio-net-pci,netdev=net{number},mac={mac},disable-legacy=on,romfile=");
        command.args(["-netdev", &tap, "-device", &device]);
    }
    command
}
