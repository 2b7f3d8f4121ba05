use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::super::registers::{POWER_BUTTON, RTC, SERIAL, WAKE};
use super::*;
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::format::{FormatError, HeaderInfo, Section};
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

    fn write_gpe0(&self, offset: u16, value: u16) {
        self.pm.pio_write(PioAddress(GPE0_PORT), offset, &value.to_le_bytes());
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
    bench.pm.raise(Event::PowerButton);
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
fn an_event_that_is_enabled_asks_once_for_the_guest_to_be_woken() {
    for (event, enable) in [
        (Event::PowerButton, (|bench| bench.write(2, POWER_BUTTON)) as fn(&Bench)),
        (Event::Alarm, |bench| bench.write(2, RTC)),
        (Event::Serial, |bench| bench.write_gpe0(2, SERIAL)),
    ] {
        let bench = bench();
        bench.pm.raise(event);
        assert_eq!((bench.pm.active(), bench.requests()), (None, vec![]), "{event:?} is not enabled");
        bench.write(0, u16::MAX);
        bench.write_gpe0(0, u16::MAX);
        enable(&bench);
        assert_eq!((bench.pm.active(), bench.sci.high()), (None, false));
        bench.pm.raise(event);
        bench.pm.raise(event);
        assert_eq!((bench.pm.active(), bench.requests()), (Some(event), vec![GuestRequest::Wake]));
        assert!(bench.sci.high());
    }
}

#[test]
fn a_guest_that_was_woken_returns_when_it_clears_wak_sts_and_by_nothing_else() {
    let bench = bench();
    let returns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&returns);
    bench.pm.on_return(Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    bench.write(0, WAKE);
    bench.pm.wake();
    bench.write(0, POWER_BUTTON);
    assert_eq!(returns.load(Ordering::Relaxed), 0);
    bench.write(0, WAKE);
    bench.write(0, WAKE);
    assert_eq!(returns.load(Ordering::Relaxed), 1);
}

#[test]
fn the_general_purpose_events_go_along() {
    let (source, target) = (bench(), bench());
    source.write_gpe0(2, SERIAL);
    source.pm.quiesce(Instant::now()).unwrap();
    source.pm.raise(Event::Serial);
    target.pm.load(&mut saved(None, Some(&source.pm))).unwrap();
    assert_eq!((target.pm.active(), target.sci.high()), (Some(Event::Serial), true));
}

#[test]
fn version_1_is_read_and_is_written_where_it_says_everything_that_counts() {
    let old = |state: &PmState| state.encode(1).and_then(|bytes| PmState::decode(1, &bytes));
    let none = PmState { status: WAKE, enable: POWER_BUTTON, control: 2, gpe_status: 0, gpe_enable: 0 };
    assert_eq!(old(&none).unwrap(), none);
    let unheard = PmState { status: WAKE | RTC, gpe_status: SERIAL, ..none.clone() };
    assert_eq!(old(&unheard).unwrap(), none);
    for lost in
        [PmState { status: RTC, enable: RTC, ..none.clone() }, PmState { gpe_enable: SERIAL, ..none.clone() }]
    {
        assert!(matches!(old(&lost), Err(FormatError::CannotWrite { version: 1, .. })), "{lost:?}");
    }
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
    source.pm.raise(Event::PowerButton);
    assert!(!source.sci.high());
    target.pm.load(&mut saved(None, Some(&source.pm))).unwrap();
    assert!(target.sci.high());
    source.pm.resume();
    assert!(source.sci.high());
}

#[test]
fn a_register_that_holds_a_bit_that_does_not_exist_is_refused_and_named() {
    let state = PmState { status: 0, enable: 1 << 15, control: 0, gpe_status: 0, gpe_enable: 0 };
    let error = bench().pm.load(&mut saved(Some(&state), None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pm: saved state is not possible: PM1 enable 0x8000; expected no bit outside 0x0520"
    );
}
