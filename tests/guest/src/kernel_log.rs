//! Which kernel messages tell that a guest noticed something.

/// A class of message and the words that make a message one of it: every word of one of the lists is in it.
const CLASSES: [(&str, &[&[&str]]); 9] = [
    ("lockup", &[&["lockup"]]),
    ("stall", &[&[" stall"], &["kthread starved"]]),
    (
        "clocksource",
        &[
            &["clocksource", "unstable"],
            &["clocksource", "watchdog"],
            &["clocksource", "skew"],
            &["clocksource", "readout"],
            &["tsc", "unstable"],
        ],
    ),
    ("oops", &[&["oops: "], &["general protection fault"], &["unable to handle"], &["kernel panic"]]),
    ("bug", &[&["bug:"], &["kernel bug at"]]),
    ("warning", &[&["warning: "]]),
    ("i/o error", &[&["i/o error"]]),
    ("ext4 error", &[&["ext4-fs error"], &["ext4-fs warning"], &["aborted journal"]]),
    ("hung task", &[&["blocked for more than"]]),
];

/// The class that a kernel message belongs to, if it tells that something went wrong.
pub fn class(message: &str) -> Option<&'static str> {
    let message = message.to_lowercase();
    let matches = |words: &&[&str]| words.iter().all(|word| message.contains(word));
    CLASSES.iter().find(|(_, lists)| lists.iter().any(matches)).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_trouble_are_classed() {
        for (message, expected) in [
            ("watchdog: BUG: soft lockup - CPU#1 stuck for 22s!", "lockup"),
            ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "stall"),
            (
                "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable",
                "clocksource",
            ),
            ("tsc: Marking TSC unstable due to check_tsc_sync_source failed", "clocksource"),
            ("Oops: 0000 [#1] SMP NOPTI", "oops"),
            ("WARNING: CPU: 0 PID: 1 at kernel/time/timekeeping.c:1", "warning"),
            ("INFO: task init:1 blocked for more than 120 seconds.", "hung task"),
        ] {
            assert_eq!(class(message), Some(expected), "{message}");
        }
    }

    #[test]
    fn messages_of_a_healthy_boot_are_not() {
        for message in [
            "clocksource: kvm-clock: mask: 0xffffffffffffffff max_cycles: 0x1cd42e4dffb",
            "clocksource: Switched to clocksource kvm-clock",
            "tsc: Detected 2600.000 MHz processor",
            "9p: Installing v9fs 9p2000 file system support",
            "NMI watchdog: Perf NMI watchdog permanently disabled",
            "printk: legacy console [ttyS0] enabled",
        ] {
            assert_eq!(class(message), None, "{message}");
        }
    }
}
