//! Options on the kernel's command line.

use std::net::Ipv4Addr;

use crate::disk::Named;

/// What the guest was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether patterns are written to memory without end.
    pub load_memory: bool,
    /// Whether each CPU is kept busy holding register patterns.
    pub load_cpu: bool,
    /// Whether the entropy device is read without end.
    pub load_rng: bool,
    /// MiB of memory patterns.
    pub memory_mib: usize,
    /// Numbered lines a second.
    pub rate: u32,
    /// The terminal that lines go to and commands come from.
    pub console: String,
    /// Disks to put load on.
    pub disks: Vec<Named>,
    /// The network interface's address.
    pub net: Option<Ipv4Addr>,
    /// Whether messages are answered on AF_VSOCK.
    pub vsock: bool,
}

impl Options {
    /// Reads `guest.*` options; what is not there or not a number keeps its default.
    pub fn from_cmdline(cmdline: &str) -> Self {
        let mut options = Self {
            load_memory: true,
            load_cpu: true,
            load_rng: false,
            memory_mib: 256,
            rate: 10,
            console: "ttyS0".into(),
            disks: Vec::new(),
            net: None,
            vsock: false,
        };
        for word in cmdline.split_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            match key {
                "guest.load" => {
                    options.load_memory = value.split(',').any(|load| load == "mem");
                    options.load_cpu = value.split(',').any(|load| load == "cpu");
                    options.load_rng = value.split(',').any(|load| load == "rng");
                }
                "guest.console" => value.clone_into(&mut options.console),
                "guest.mem" => options.memory_mib = value.parse().unwrap_or(options.memory_mib),
                "guest.rate" => options.rate = value.parse().unwrap_or(options.rate).clamp(1, 1000),
                "guest.disks" => options.disks = Named::list(value),
                "guest.net" => options.net = value.parse().ok(),
                "guest.vsock" => options.vsock = value == "on",
                _ => {}
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_among_the_kernels_own() {
        let options = Options::from_cmdline(
            "console=ttyS0 guest.load=mem,rng guest.mem=64 quiet guest.rate=0 guest.console=hvc0\n",
        );
        assert_eq!(
            options,
            Options {
                load_memory: true,
                load_cpu: false,
                load_rng: true,
                memory_mib: 64,
                rate: 1,
                console: "hvc0".into(),
                disks: Vec::new(),
                net: None,
                vsock: false
            }
        );
    }
}
