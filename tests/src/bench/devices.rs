//! What each device adds to the downtime: its own steps in the report, while it is idle.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use vmm_core::cpr::report::PhaseTime;

use super::stats::{median, ms};
use crate::guests::{Guest, Mode};
use crate::harness::host::Host;
use crate::harness::vm::{Spec, Vm};

/// Hands a guest with one device of each kind over, and prints what each has added.
pub fn run(count: u32, as_json: bool) -> anyhow::Result<()> {
    let host = Host::new()?;
    let image = host.fresh("img");
    File::create(&image).and_then(|file| file.set_len(1 << 20)).context("making an image")?;
    let mut devices = vec![
        "virtio-rng-pci,id=rng".to_owned(),
        format!("virtio-serial-pci,id=console,console=unix:{}", host.fresh("console").display()),
        format!("virtio-blk-pci,id=disk,path={}", image.display()),
    ];
    let mut notes = Vec::new();
    match tap() {
        Ok(()) => devices.push("virtio-net-pci,id=net,tap=t0".into()),
        Err(error) => notes.push(format!("no network device: {error:#}")),
    }
    let mut vm = Vm::boot(&host, Spec { devices, ..Spec::new(Guest::patterns(Mode::Long), 1) })?;
    let mut added = BTreeMap::<String, Vec<Duration>>::new();
    for _ in 0..count {
        let outcome = vm.transfer()?;
        vm.goes_on()?;
        let phases = outcome.facts["report"]["phases"].clone();
        let phases: Vec<PhaseTime> = serde_json::from_value(phases).context("the report's phases")?;
        let mut sums = BTreeMap::<&str, u64>::new();
        for phase in &phases {
            if let Some(device) = phase.device() {
                *sums.entry(device).or_default() += phase.us;
            }
        }
        ensure!(!sums.is_empty(), "the report says nothing of devices");
        for (device, us) in sums {
            added.entry(device.to_owned()).or_default().push(Duration::from_micros(us));
        }
    }
    let row = |(device, times): (&String, &Vec<Duration>)| {
        let (least, most) = (times.iter().min(), times.iter().max());
        (
            device.clone(),
            [
                median(times.iter().copied()),
                *least.unwrap_or(&Duration::ZERO),
                *most.unwrap_or(&Duration::ZERO),
            ],
        )
    };
    let rows: BTreeMap<_, _> = added.iter().map(row).collect();
    if as_json {
        let rows: BTreeMap<_, _> = rows.iter().map(|(device, times)| (device, times.map(ms))).collect();
        println!("{}", json!({"count": count, "devices": rows, "notes": notes}));
        return Ok(());
    }
    println!("what each idle device adds to the downtime, in ms ({count} transfers)\n");
    println!("{:<12} {:>8} {:>8} {:>8}", "", "median", "min", "max");
    for (device, [median, least, most]) in rows {
        println!("{device:<12} {:>8.3} {:>8.3} {:>8.3}", ms(median), ms(least), ms(most));
    }
    for note in &notes {
        println!("note: {note}");
    }
    Ok(())
}

/// Enters a network namespace of its own, with a tap in it.
fn tap() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
    let made = Command::new("ip").args(["tuntap", "add", "dev", "t0", "mode", "tap"]).status();
    ensure!(made.context("running ip")?.success(), "ip tuntap failed");
    Ok(())
}
