//! Which kernel messages tell that a guest noticed something.

/// A class of message and the words that make a message one of it: every word of one of the lists is in it.
const CLASSES: [(&str, &[&[&str]]); 10] = [
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
    (
        "nvme",
        &[
            // Not how long it may take to shut down, which a healthy one says.
            &["nvme", " timeout, "],
            &["nvme", "reset"],
            &["nvme", "abort"],
            &["nvme", "not ready"],
            &["nvme", "controller is down"],
            &["nvme", "removing"],
            &["nvme", "failed"],
            &["nvme", "invalid id"],
            &["nvme", "no usable path"],
            &["nvme", "no available path"],
        ],
    ),
    ("ext4 error", &[&["ext4-fs error"], &["ext4-fs warning"], &["aborted journal"]]),
    ("hung task", &[&["blocked for more than"]]),
];

/// The message of a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg), if the kernel wrote it: whoever may write
/// there has facilities other than 0, and systemd does.
pub fn message(record: &str) -> Option<&str> {
    let (prefix, rest) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then(|| rest.lines().next().unwrap_or_default())
}

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
            ("nvme nvme0: I/O 12 QID 1 timeout, completion polled", "nvme"),
            ("nvme nvme0: I/O tag 5 (1005) opcode 0x1 (I/O Cmd) QID 2 timeout, reset controller", "nvme"),
            ("nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10", "nvme"),
            ("block nvme0n1: no usable path - requeuing I/O", "nvme"),
            ("I/O error, dev nvme0n1, sector 8 op 0x1:(WRITE) flags 0x8800", "i/o error"),
            ("INFO: task init:1 blocked for more than 120 seconds.", "hung task"),
        ] {
            assert_eq!(class(message), Some(expected), "{message}");
        }
    }

    #[test]
    fn what_others_write_to_the_kernels_log_is_not_the_kernels() {
        assert_eq!(message("4,101,5140900,-;a warning\n SUBSYSTEM=net\n"), Some("a warning"));
        assert_eq!(message("30,102,5140901,-;systemd[1]: Warning: stopped\n"), None);
        assert_eq!(message("no record"), None);
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
            "nvme nvme0: pci function 0000:00:04.0",
            "nvme nvme0: Shutdown timeout set to 10 seconds",
            "nvme nvme0: 2/0/0 default/read/poll queues",
            "nvme nvme0: missing or invalid SUBNQN field.",
        ] {
            assert_eq!(class(message), None, "{message}");
        }
    }
}
