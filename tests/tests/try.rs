//! try
use cpr_tests::guests::*;
use cpr_tests::harness::qemu::*;
use cpr_tests::harness::watch::*;
#[test]
fn it() {
    let d = tempfile::tempdir().unwrap();
    let rom = Guest::new(Work::Heartbeat, Mode::Long).write_to(d.path()).unwrap();
    let mut q = Qemu::boot(Config { rom, accelerator: "kvm", cpus: 1, memory_mib: 256 }, d.path()).unwrap();
    let ram = std::sync::Arc::new(q.ram().unwrap());
    ram.wait_for_heartbeat(1).unwrap();
    for _ in 0..5 {
        let w = Watcher::start(ram.clone());
        std::thread::sleep(std::time::Duration::from_millis(300));
        println!("noise {:?}", w.finish().unwrap());
        let t = q.prepare().unwrap();
        let w = Watcher::start(ram.clone());
        q.transfer(t).unwrap();
        println!("{:?}", w.finish().unwrap());
        ram.wait_for_heartbeat(1).unwrap();
    }
}
