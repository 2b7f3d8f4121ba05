use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::format::HeaderInfo;
use crate::x86::layout::PM1_EVENT_PORT;

#[derive(Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::Relaxed);
    }
}

impl Line {
    fn high(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Bench {
    pm: Pm,
    sci: Arc<Line>,
    requests: Arc<Mutex<Vec<GuestRequest>>>,
}

fn bench() -> Bench {
    let sci = Arc::new(Line::default());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&requests);
    let pm = Pm::new(
        Arc::clone(&sci) as Arc<dyn IrqLine>,
        Arc::new(move |request| sink.lock().unwrap().push(request)),
    );
    Bench { pm, sci, requests }
}

impl Bench {
    fn write(&self, offset: u16, value: u16) {
        self.pm.pio_write(PioAddress(PM1_EVENT_PORT), offset, &value.to_le_bytes());
    }

    fn requests(&self) -> Vec<GuestRequest> {
        self.requests.lock().unwrap().clone()
    }
}

fn saved(section: Option<&PmState>, device: Option<&Pm>) -> StateReader {
    let mut out = StateWriter::new(HeaderInfo {
        mode: Mode::CprTransfer,
        guest_name: "web".into(),
        guest_uuid: Uuid([0; 16]),
        writer: "0.1.0".into(),
        created: 0,
    });
    if let Some(section) = section {
        out.put(0, section).unwrap();
    }
    if let Some(device) = device {
        device.save(&mut out).unwrap();
    }
    StateReader::parse(&out.finish().unwrap()).unwrap()
}

#[test]
fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
    let bench = bench();
    bench.write(2, POWER_BUTTON);
    bench.pm.press_power_button();
    assert!(bench.sci.high());
    bench.write(0, POWER_BUTTON);
    assert!(!bench.sci.high());
}

#[test]
fn s5_powers_off_s3_sleeps_and_other_sleep_types_do_nothing() {
    let bench = bench();
    bench.write(4, 1 << 13 | 1 << 10);
    assert!(bench.requests().is_empty());
    bench.write(4, 1 << 13 | 5 << 10);
    assert_eq!(bench.requests(), [GuestRequest::PowerOff]);
    bench.write(4, 1 << 13 | 3 << 10);
    assert_eq!(bench.requests(), [GuestRequest::PowerOff, GuestRequest::Sleep]);
}

#[test]
fn a_guest_that_is_woken_finds_wak_sts_set_and_no_interrupt_for_it() {
    let bench = bench();
    bench.write(2, u16::MAX);
    bench.pm.wake();
    let mut status = [0; 2];
    bench.pm.pio_read(PioAddress(PM1_EVENT_PORT), 0, &mut status);
    assert_eq!((u16::from_le_bytes(status), bench.sci.high()), (WAKE, false));
    bench.write(0, WAKE);
    bench.pm.pio_read(PioAddress(PM1_EVENT_PORT), 0, &mut status);
    assert_eq!(u16::from_le_bytes(status), 0);
}

#[test]
fn the_reset_register_resets() {
    let bench = bench();
    let write = |value| bench.pm.pio_write(PioAddress(RESET_PORT), 0, &[value]);
    write(2);
    assert!(bench.requests().is_empty());
    write(crate::x86::layout::RESET_VALUE);
    assert_eq!(bench.requests(), [GuestRequest::Reset]);
}

#[test]
fn a_press_while_quiesced_moves_no_line_and_is_seen_by_whoever_resumes() {
    let (source, target) = (bench(), bench());
    source.write(2, POWER_BUTTON);
    source.pm.quiesce(Instant::now()).unwrap();
    source.pm.press_power_button();
    assert!(!source.sci.high());
    target.pm.load(&mut saved(None, Some(&source.pm))).unwrap();
    assert!(target.sci.high());
    source.pm.resume();
    assert!(source.sci.high());
}

#[test]
fn a_register_that_holds_a_bit_that_does_not_exist_is_refused_and_named() {
    let state = PmState { status: 0, enable: 1 << 15, control: 0 };
    let error = bench().pm.load(&mut saved(Some(&state), None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pm: saved state is not possible: PM1 enable 0x8000; expected no bit outside 0x0520"
    );
}
