//! The CMOS clock's alarm, by the kernel's driver for it (the kernel's Documentation/ABI/testing/rtc-cdev, sysfs-class-rtc).

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";
/// What the driver's interrupt is called.
const NAME: &str = "rtc0";
/// When an alarm is to come that is waited for, and for how long it is.
const SOON: u64 = 2;
const WITHIN: Duration = Duration::from_secs(10);

/// Has the alarm come in so many seconds, in the place of any that was set.
pub fn set_alarm(seconds: u64) -> io::Result<()> {
    fs::write(ALARM, "0")?;
    fs::write(ALARM, format!("+{seconds}"))
}

/// Has an alarm come soon, and waits for its interrupt; gives how many there were.
pub fn ring() -> io::Result<u64> {
    let before = interrupts()?;
    set_alarm(SOON)?;
    let step = Duration::from_millis(100);
    for _ in 0..WITHIN.as_millis() / step.as_millis() {
        thread::sleep(step);
        if interrupts()? != before {
            break;
        }
    }
    // A second one would be one too many.
    thread::sleep(Duration::from_secs(1));
    Ok(interrupts()? - before)
}

/// How many interrupts of the clock's the CPUs have taken.
fn interrupts() -> io::Result<u64> {
    let all = fs::read_to_string("/proc/interrupts")?;
    let line = all.lines().find(|line| line.split_whitespace().last() == Some(NAME));
    let line = line.ok_or_else(|| io::Error::other("the clock has no interrupt"))?;
    Ok(line.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok()).sum())
}
