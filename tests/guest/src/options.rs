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
    /// The nice level of what keeps memory and CPUs busy.
    pub nice: i32,
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
    /// Whether QEMU's educational device is put under load: by its pin, or by messages.
    pub edu: Option<Edu>,
    /// Whether a mediated serial card is put under load.
    pub mediated: bool,
    /// Whether there is an agent that suspends the guest.
    pub agent: bool,
    /// Whether devices are measured and nothing else is done: the addresses of the network interfaces then.
    pub bench: Option<Vec<Ipv4Addr>>,
    /// The disk whose init takes over, if one does.
    pub root: Option<String>,
}

/// How the interrupts of the educational device come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edu {
    /// By its pin.
    Intx,
    /// By messages.
    Msi,
}

impl Options {
    /// Reads `guest.*` options; what is not there or not a number keeps its default.
    pub fn from_cmdline(cmdline: &str) -> Self {
        let mut options = Self {
            load_memory: true,
            load_cpu: true,
            load_rng: false,
            nice: 0,
            memory_mib: 256,
            rate: 10,
            console: "ttyS0".into(),
            disks: Vec::new(),
            net: None,
            vsock: false,
            edu: None,
            mediated: false,
            agent: false,
            bench: None,
            root: None,
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
                "guest.nice" => options.nice = value.parse().unwrap_or(options.nice),
                "guest.mem" => options.memory_mib = value.parse().unwrap_or(options.memory_mib),
                "guest.rate" => options.rate = value.parse().unwrap_or(options.rate).clamp(1, 1000),
                "guest.disks" => options.disks = Named::list(value),
                "guest.net" => options.net = value.parse().ok(),
                "guest.root" => options.root = Some(value.to_owned()),
                "guest.vsock" => options.vsock = value == "on",
                "guest.agent" => options.agent = value == "on",
                "guest.mediated" => options.mediated = value == "on",
                "guest.edu" => {
                    options.edu = match value {
                        "intx" => Some(Edu::Intx),
                        "msi" => Some(Edu::Msi),
                        _ => None,
                    }
                }
                "guest.bench" => {
                    options.bench =
                        Some(value.split(',').filter_map(|address| address.parse().ok()).collect());
                }
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
            "console=ttyS0 guest.load=mem,rng guest.mem=64 guest.nice=10 quiet guest.rate=0 guest.console=hvc0 guest.root=vda guest.edu=intx guest.mediated=on guest.agent=on\n",
        );
        assert_eq!(
            options,
            Options {
                load_memory: true,
                load_cpu: false,
                load_rng: true,
                nice: 10,
                memory_mib: 64,
                rate: 1,
                console: "hvc0".into(),
                disks: Vec::new(),
                net: None,
                vsock: false,
                edu: Some(Edu::Intx),
                mediated: true,
                agent: true,
                bench: None,
                root: Some("vda".into())
            }
        );
    }

    #[test]
    fn a_guest_that_measures_is_told_its_addresses_if_it_has_any() {
        let bench = |cmdline| Options::from_cmdline(cmdline).bench;
        assert_eq!(bench("guest.bench=on"), Some(Vec::new()));
        let two = vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 1, 2)];
        assert_eq!(bench("quiet guest.bench=10.0.0.2,10.0.1.2"), Some(two));
        assert_eq!(bench("quiet"), None);
    }
}
