//! Power off: on command, or by the power button. Sleep: on command.
//!
//! Whoever is init does it; a service asks init.

use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;
use std::thread;

use guest_init::link;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::Pid;

use crate::setup::{self, Before};

const INIT: Pid = Pid::from_raw(1);
/// The real-time signal that has systemd start its poweroff.target.
const START_POWEROFF: i32 = 4;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// Bytes of the kernel's `struct input_event` before its type: two 64-bit times.
const EVENT_TIME: usize = 16;

/// Whether this process is the guest's init.
pub fn is_init() -> bool {
    Pid::this() == INIT
}

/// Powers the guest off: through ACPI, or by the way that systemd has for it (systemd(1), signals).
pub fn off() -> ! {
    nix::unistd::sync();
    if is_init() {
        networks_down();
        let _ = reboot(RebootMode::RB_POWER_OFF);
    } else {
        // SAFETY: a signal to another process touches no memory of this one.
        unsafe { libc::kill(INIT.as_raw(), libc::SIGRTMIN() + START_POWEROFF) };
    }
    loop {
        thread::park();
    }
}

/// Sleeps (ACPI S3); comes back when the guest was woken (the kernel's Documentation/power/interface.rst).
pub fn sleep() -> std::io::Result<()> {
    fs::write("/sys/power/state", "mem")
}

/// Has input at the serial port wake the guest from now on (`enabled`), and the port stay as it is meanwhile, so that nothing of that
/// is lost; or no more (`disabled`; the kernel's Documentation/ABI/testing/sysfs-devices-power).
pub fn wake_by_serial_port(whether: &str) -> std::io::Result<()> {
    let ports = fs::read_dir("/sys/bus/pnp/drivers/serial")?.flatten().map(|entry| entry.path());
    for device in ports.chain(["/sys/class/tty/ttyS0".into()]) {
        // The driver's folder has files besides.
        if device.join("power").is_dir() {
            fs::write(device.join("power/wakeup"), whether)?;
        }
    }
    Ok(())
}

/// As any init does. Linux 6.1.192 breaks virtio devices when it goes down, and its driver looks for ever for what a broken one
/// has sent, if packets still come.
fn networks_down() {
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        if let Some(name) = entry.file_name().to_str() {
            // The guest goes down in any case.
            let _ = link::down(name);
        }
    }
}

/// Waits, in threads of its own, for the power button on every input device there is; powers off after `before`.
pub fn watch_button(before: impl Fn() + Send + Sync + 'static) {
    let before = Arc::new(before);
    let Ok(entries) = fs::read_dir("/dev/input") else { return };
    for entry in entries.flatten() {
        let Ok(mut device) = File::open(entry.path()) else { continue };
        let before = Arc::clone(&before);
        thread::spawn(move || {
            setup::real_time(Before::Load);
            let mut event = [0; EVENT_TIME + 8];
            while device.read_exact(&mut event).is_ok() {
                let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
                let pressed = event[EVENT_TIME + 4] == 1;
                if (half(EVENT_TIME), half(EVENT_TIME + 2)) == (EV_KEY, KEY_POWER) && pressed {
                    before();
                    off();
                }
            }
        });
    }
}
