//! The commands that the console takes.

use std::fs;

use guest_init::status::Status;
use nix::time::ClockId;

use crate::clocks::{monotonic, nanoseconds};
use crate::setup::{self, Before};
use crate::{Watch, agent, power, rtc};

/// Longest command, in bytes.
const LONGEST: usize = 256;

/// Answers commands without end, whatever the load.
pub fn serve(watch: &Watch) -> Result<(), Box<dyn std::error::Error>> {
    setup::real_time(Before::Load);
    let mut line = Vec::new();
    let mut buffer = [0; 64];
    loop {
        let length = watch.console.read(&mut buffer)?;
        for &byte in &buffer[..length] {
            if byte != b'\n' && line.len() < LONGEST {
                line.push(byte);
                continue;
            }
            let command = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            watch.console.reply(&answer(watch, &command));
            match command.as_str() {
                "POWEROFF" => power::off(),
                _ => {
                    if let Some(until) = command.strip_prefix("SLEEP")
                        && let Err(error) = sleep(until.trim())
                    {
                        watch.console.reply(&format!("ERROR sleeping: {error}"));
                    }
                }
            }
        }
    }
}

/// Sleeps until it is woken; or until the console has input; or for so many seconds, at the most.
fn sleep(until: &str) -> std::io::Result<()> {
    if let Ok(seconds) = until.parse() {
        rtc::set_alarm(seconds)?;
    }
    if until == "TYPED" {
        power::wake_by_serial_port("enabled")?;
        power::sleep()?;
        return power::wake_by_serial_port("disabled");
    }
    power::sleep()
}

fn answer(watch: &Watch, command: &str) -> String {
    match command.split_once(' ').unwrap_or((command, "")) {
        ("STATUS?", _) => match serde_json::to_string(&status(watch)) {
            Ok(figures) => format!("STATUS {figures}"),
            Err(error) => format!("ERROR {error}"),
        },
        ("GAP", "RESET") => {
            watch.heartbeats.iter().for_each(crate::heartbeat::Beats::reset);
            watch.timer.reset();
            watch.disks.reset();
            "GAP RESET".to_owned()
        }
        ("FINISH", _) => {
            watch.disks.finish();
            "FINISHED".to_owned()
        }
        ("PING", rest) => format!("PONG {rest}"),
        ("SLEEP", _) => "SLEEP".to_owned(),
        ("RING", _) => match rtc::ring() {
            Ok(count) => format!("RANG {count}"),
            Err(error) => format!("ERROR setting an alarm: {error}"),
        },
        ("AGENT", "LATE") => {
            agent::be_late();
            "AGENT LATE".to_owned()
        }
        ("POWEROFF", _) => "POWEROFF".to_owned(),
        _ => format!("ERROR unknown command {command:?}"),
    }
}

fn status(watch: &Watch) -> Status {
    Status {
        monotonic: monotonic(),
        realtime: nanoseconds(ClockId::CLOCK_REALTIME),
        clocksource: sysfs("clocksource/clocksource0/current_clocksource"),
        clockevent: sysfs("clockevents/clockevent0/current_device"),
        heartbeats: watch.heartbeats.iter().map(crate::heartbeat::Beats::report).collect(),
        clocks: watch.clocks.report(),
        memory: watch.memory.report(),
        registers: watch.registers.report(),
        random: watch.random.report(),
        timer: watch.timer.report(),
        kernel_messages: watch.kernel_messages.count(),
        disks: watch.disks.report(),
        net: watch.net.as_ref().map(crate::memory::Checks::report),
        vsock: watch.vsock.as_ref().map(crate::memory::Checks::report),
        edu: watch.edu.as_ref().map(crate::memory::Checks::report),
        mediated: watch.mediated.as_ref().map(crate::memory::Checks::report),
        roms: guest_init::rom::all(),
    }
}

fn sysfs(device: &str) -> String {
    let content = fs::read_to_string(format!("/sys/devices/system/{device}"));
    content.unwrap_or_default().trim().to_owned()
}
