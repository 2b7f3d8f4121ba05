//! try
use cpr_tests::guests::{layout::*, *};
use cpr_tests::harness::bare::BareMachine;
use std::sync::atomic::Ordering::Relaxed;
#[test]
fn it() {
    for mode in Mode::ALL {
        for cpus in [1u8, 2, 4] {
            let w = if std::env::var("W").is_ok() { Work::Patterns } else { Work::Heartbeat };
            let g = Guest {
                hold: Hold(std::env::var("H").map(|h| h.parse().unwrap()).unwrap_or(31)),
                ..Guest::new(w, mode)
            };
            let mut m = BareMachine::start(&g.image(), cpus, 16 << 20).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(600));
            println!(
                "{mode:?} {cpus}: magic {:x} online {} held {} fail {:?}",
                m.ram.u64(STATUS).load(Relaxed),
                m.ram.u32(STATUS + ONLINE).load(Relaxed),
                m.ram.u32(STATUS + HELD).load(Relaxed),
                m.failure()
            );
            for i in 0..cpus as u64 {
                let a = area(i);
                println!(
                    "   {i}: count {} err {} det {:#x} ticks {} gap {} sweeps {} found {:x}",
                    m.ram.u64(a).load(Relaxed),
                    m.ram.u32(a + ERROR).load(Relaxed),
                    m.ram.u32(a + DETAIL).load(Relaxed),
                    m.ram.u64(a + TICKS).load(Relaxed),
                    m.ram.u64(a + GAP).load(Relaxed),
                    m.ram.u64(a + SWEEPS).load(Relaxed),
                    m.ram.u64(a + FOUND).load(Relaxed)
                );
            }
        }
    }
}
