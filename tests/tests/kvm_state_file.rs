//! State files: what does not belong together is not put together.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use cpr_tests::guests::{Guest, Mode};
use cpr_tests::harness::host::Host;
use cpr_tests::harness::runner::Tier;
use cpr_tests::harness::vm::{Spec, Vm};

cpr_tests::tests!(
    Tier::Kvm,
    a_file_whose_ram_is_another_guests_is_refused,
    a_file_whose_ram_was_never_a_guests_is_refused,
    a_file_is_not_loaded_a_second_time_over_ram_that_went_on,
    an_image_that_was_changed_is_refused_until_that_is_insisted_on,
    a_damaged_or_truncated_file_is_refused_and_changes_nothing,
    check_and_inspect_say_what_a_file_is_without_touching_it,
);

/// A guest that was saved, and whose process has ended.
struct Saved<'h> {
    vm: Vm<'h>,
    file: PathBuf,
}

impl<'h> Saved<'h> {
    fn new(host: &'h Host) -> anyhow::Result<Self> {
        Self::with(host, Vec::new())
    }

    fn with(host: &'h Host, devices: Vec<String>) -> anyhow::Result<Self> {
        let mut vm = Vm::boot(host, Spec { devices, ..Spec::new(Guest::patterns(Mode::Long), 2) })?;
        let file = host.fresh("state");
        vm.save("reboot", &["--to", &format!("file:{}", file.display())])?.must_be(0)?;
        vm.process.wait(std::time::Duration::from_mins(1)).context("the source")?;
        Ok(Self { vm, file })
    }

    fn ram_file(&self) -> anyhow::Result<PathBuf> {
        self.vm.ram_file().context("its RAM is no file")
    }

    /// Loads it and expects it to go on.
    fn goes_on(self, host: &'h Host) -> anyhow::Result<Vm<'h>> {
        self.goes_on_with(host, &[])
    }

    fn goes_on_with(mut self, host: &'h Host, more: &[&str]) -> anyhow::Result<Vm<'h>> {
        let from = format!("file:{}", self.file.display());
        self.vm.process = host.load(["resume", "--from", &from].iter().chain(more))?;
        self.vm.becomes("running")?;
        self.vm.goes_on()?;
        Ok(self.vm)
    }
}

/// What `cpr-load VERB --from file:FILE …` says when it ends, and whether it ended well.
fn load(host: &Host, verb: &str, file: &std::path::Path, more: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command: Command = host.command("cpr-load")?;
    let from = format!("file:{}", file.display());
    let output = command.args([verb, "--from", &from]).args(more).output().context("running cpr-load")?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Ok((output.status.success(), said))
}

fn refused(host: &Host, file: &std::path::Path, more: &[&str], says: &str) -> anyhow::Result<()> {
    let (loaded, said) = load(host, "resume", file, more)?;
    ensure!(!loaded, "{} was loaded: {said}", file.display());
    ensure!(said.contains(says), "cpr-load did not say '{says}', but: {said}");
    ensure!(!said.contains("panicked"), "cpr-load panicked: {said}");
    Ok(())
}

fn a_file_whose_ram_is_another_guests_is_refused() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (one, other) = (Saved::new(&host)?, Saved::new(&host)?);
    let path = format!("memory.path={}", other.ram_file()?.display());
    refused(&host, &one.file, &["--set", &path], "this RAM is of guest")?;
    one.vm.stands_still()?;
    one.goes_on(&host)?;
    other.goes_on(&host).map(drop)
}

fn a_file_whose_ram_was_never_a_guests_is_refused() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let blank = host.fresh("ram");
    let size = std::fs::metadata(saved.ram_file()?).context("its RAM")?.len();
    std::fs::File::create(&blank).and_then(|file| file.set_len(size)).context("making a blank file")?;
    refused(&host, &saved.file, &["--set", &format!("memory.path={}", blank.display())], "no stamp")?;
    saved.goes_on(&host).map(drop)
}

fn a_file_is_not_loaded_a_second_time_over_ram_that_went_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let kept = host.fresh("copy");
    std::fs::copy(&saved.file, &kept).context("copying the state file")?;
    let vm = saved.goes_on(&host)?;
    refused(&host, &kept, &[], "pc.ram").context("while its guest runs")?;
    vm.goes_on()?;
    drop(vm);
    refused(&host, &kept, &[], "loaded already").context("after its guest has gone")
}

fn an_image_that_was_changed_is_refused_until_that_is_insisted_on() -> anyhow::Result<()> {
    let host = Host::new()?;
    let image = host.fresh("image");
    std::fs::write(&image, [1; 8192]).context("making an image")?;
    let saved = Saved::with(&host, vec![format!("virtio-blk-pci,id=disk0,path={}", image.display())])?;
    std::fs::write(&image, [2; 4096]).context("changing the image")?;
    for says in ["disk0", "size was 8192 bytes and is 4096 bytes", "--set disk0.changed=accept"] {
        refused(&host, &saved.file, &[], says)?;
    }
    saved.vm.stands_still()?;
    saved.goes_on_with(&host, &["--set", "disk0.changed=accept"]).map(drop)
}

fn a_damaged_or_truncated_file_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let whole = std::fs::read(&saved.file).context("reading the state file")?;
    let damaged = host.fresh("damaged");
    let write = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes)?;
        std::fs::set_permissions(&damaged, std::os::unix::fs::PermissionsExt::from_mode(0o600))
    };
    for length in [0, 1, 16, 64, whole.len() / 2, whole.len() - 1] {
        write(&whole[..length]).context("writing a truncated file")?;
        refused(&host, &damaged, &[], "damaged").with_context(|| format!("truncated to {length} bytes"))?;
    }
    for step in 0..24 {
        let at = step * whole.len() / 24;
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        write(&bytes).context("writing a damaged file")?;
        refused(&host, &damaged, &[], "damaged").with_context(|| format!("byte {at} flipped"))?;
    }
    saved.goes_on(&host).map(drop)
}

fn check_and_inspect_say_what_a_file_is_without_touching_it() -> anyhow::Result<()> {
    let host = Host::new()?;
    let saved = Saved::new(&host)?;
    let (fits, said) = load(&host, "check", &saved.file, &[])?;
    ensure!(fits, "check: {said}");
    let (fits, said) = load(&host, "check", &saved.file, &["--set", "cpu.mask=sse3"])?;
    ensure!(!fits && said.contains("sse3"), "check without sse3: {said}");
    let output = host.command("cpr-load")?.arg("inspect").arg(&saved.file).arg("--json").output();
    let output = output.context("running cpr-load inspect")?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).context("inspect's output")?;
    ensure!(json.to_string().contains(&saved.vm.name), "inspect does not name the guest: {json}");
    saved.goes_on(&host).map(drop)
}
