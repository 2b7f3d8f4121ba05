//! Init of a Linux test guest: puts load on it and watches, from inside, that nothing is noticed.
//!
//! 1. Every byte it writes to the console is in a numbered, checksummed line ([`guest_init::frame`]); the kernel
//!    writes none after the first of them.
//! 2. A heartbeat on each CPU keeps the longest gap; all clocks are read on all CPUs and never step back.
//! 3. Memory, FPU, SSE and AVX registers hold patterns that are verified without end; the entropy device is read.
//! 4. The console takes commands, one a line: `STATUS?`, `GAP RESET`, `PING …`, `FINISH` (ends the load on
//!    disks), `SLEEP` (`SLEEP 20`: for 20 s at the most; `SLEEP TYPED`: until the serial port has input at the most), `RING` (an
//!    alarm comes while it runs), `AGENT LATE` (its next suspension takes seconds more), `POWEROFF`.
//! 5. The power button powers the guest off.
//! 6. With `guest.root=vda`, that disk's own init takes over, and this program is a service of it ([`userland`]): the
//!    network, the power button and the serial port are that userland's.
//!
//! Options on the kernel's command line: `guest.load=mem,cpu,rng` (what load), `guest.nice=0` (at which nice level), `guest.mem=256` (MiB of patterns),
//! `guest.rate=10` (numbered lines a second), `guest.console=ttyS0` (which terminal), `guest.disks=vda,vdb:ext4` (disks
//! to put load on), `guest.net=192.0.2.2` (eth0's address, where messages are answered), `guest.vsock=on` (they are
//! on AF_VSOCK, too), `guest.edu=msi` or `intx` (the educational device is put under load), `guest.mediated=on` (a mediated serial card is),
//! `guest.agent=on` (it is suspended when QEMU's agent would be asked to). With `guest.bench=…` none of this is done: devices are measured ([`bench`]).

mod agent;
mod bench;
mod clocks;
mod commands;
mod console;
mod disk;
mod edu;
mod heartbeat;
mod kmsg;
mod mediated;
mod memory;
mod net;
mod options;
mod power;
mod random;
mod registers;
mod rtc;
mod setup;
mod timer;
mod userland;
mod vsock;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use console::Console;
use guest_init::early;

/// What the threads share.
struct Watch {
    console: Console,
    clocks: clocks::Clocks,
    heartbeats: Vec<heartbeat::Beats>,
    memory: memory::Checks,
    registers: memory::Checks,
    random: memory::Checks,
    timer: timer::TimerWatch,
    kernel_messages: kmsg::Seen,
    disks: disk::Disks,
    net: Option<memory::Checks>,
    vsock: Option<memory::Checks>,
    edu: Option<memory::Checks>,
    mediated: Option<memory::Checks>,
}

fn main() {
    if let Err(problem) = run() {
        eprintln!("guest-init: {problem}");
        power::off();
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    if power::is_init() {
        early::mounts(&[("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")])?;
        early::modules();
    }
    let options = options::Options::from_cmdline(&std::fs::read_to_string("/proc/cmdline")?);
    if let Some(addresses) = &options.bench {
        return bench::run(&options.console, addresses);
    }
    if let Some(device) = options.root.as_ref().filter(|_| power::is_init()) {
        match userland::enter(device, &options)? {}
    }
    let cpus = thread::available_parallelism()?.get();
    let watch = Arc::new(Watch {
        console: Console::open(&format!("/dev/{}", options.console))?,
        clocks: clocks::Clocks::new(),
        heartbeats: (0..cpus).map(|_| heartbeat::Beats::default()).collect(),
        memory: memory::Checks::default(),
        registers: memory::Checks::default(),
        random: memory::Checks::default(),
        timer: timer::TimerWatch::default(),
        kernel_messages: kmsg::Seen::default(),
        disks: disk::Disks::start(&options.disks),
        net: options.net.map(|_| memory::Checks::default()),
        vsock: options.vsock.then(memory::Checks::default),
        edu: options.edu.map(|_| memory::Checks::default()),
        mediated: options.mediated.then(memory::Checks::default),
    });
    setup::quiet_console();
    watch.console.reply(&format!("READY cpus={cpus}"));

    setup::unthrottle();
    for cpu in 0..cpus {
        let beats = Arc::clone(&watch);
        thread::spawn(move || heartbeat::run(&beats.heartbeats[cpu], &beats.clocks, cpu));
        if options.load_cpu {
            let load = Arc::clone(&watch);
            thread::spawn(move || {
                setup::nice(options.nice);
                registers::run(&load.registers, &load.clocks, cpu);
            });
        }
        if options.load_memory {
            let load = Arc::clone(&watch);
            let bytes = options.memory_mib * (1 << 20) / cpus;
            thread::spawn(move || {
                setup::nice(options.nice);
                memory::run(&load.memory, bytes, cpu);
            });
        }
    }
    if options.load_rng {
        let load = Arc::clone(&watch);
        thread::spawn(move || random::run(&load.random));
    }
    if let Some(address) = options.net {
        let net = Arc::clone(&watch);
        thread::spawn(move || net.net.as_ref().map(|checks| net::run(checks, address)));
    }
    if options.vsock {
        let vsock = Arc::clone(&watch);
        thread::spawn(move || vsock.vsock.as_ref().map(vsock::run));
    }
    if let Some(wires) = options.edu {
        let edu = Arc::clone(&watch);
        thread::spawn(move || edu.edu.as_ref().map(|checks| edu::run(checks, wires)));
    }
    if options.mediated {
        let mediated = Arc::clone(&watch);
        thread::spawn(move || mediated.mediated.as_ref().map(mediated::run));
    }
    if options.agent {
        thread::spawn(agent::run);
    }
    let timer = Arc::clone(&watch);
    thread::spawn(move || timer::run(&timer.timer));
    let log = Arc::clone(&watch);
    thread::spawn(move || kmsg::run(&log.kernel_messages, &log.console));
    if power::is_init() {
        let pressed = Arc::clone(&watch);
        power::watch_button(move || pressed.disks.finish());
    }
    let filler = Arc::clone(&watch);
    thread::spawn(move || {
        setup::real_time(setup::Before::Load);
        loop {
            filler.console.numbered();
            thread::sleep(Duration::from_secs(1) / options.rate);
        }
    });
    commands::serve(&watch)
}
