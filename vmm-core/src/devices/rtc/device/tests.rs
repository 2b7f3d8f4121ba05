use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};

use super::super::clock::SECOND;
use super::*;
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::format::{FormatError, HeaderInfo, Section};

const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
/// Alarms interrupt, with hours to 24.
const ALARM: u8 = 0x22;
/// Alarm interrupt and its flag.
const RANG: u8 = 0xa0;

/// Counts rising edges.
#[derive(Default)]
struct Line(AtomicUsize);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.fetch_add(usize::from(high), Ordering::Relaxed);
    }
}

/// A clock, its line, and how often it has signalled.
struct Bench {
    rtc: Arc<Rtc>,
    line: Arc<Line>,
    signals: Arc<AtomicUsize>,
}

impl std::ops::Deref for Bench {
    type Target = Rtc;

    fn deref(&self) -> &Rtc {
        &self.rtc
    }
}

impl Bench {
    fn new(ram_size: u64) -> Self {
        let (line, signals) = (Arc::<Line>::default(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&signals);
        let signal = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let rtc = Rtc::new(ram_size, Arc::clone(&line) as Arc<dyn IrqLine>, signal).unwrap();
        Self { rtc, line, signals }
    }

    /// Interrupts so far, each of which it has signalled.
    fn interrupts(&self) -> usize {
        let count = self.line.0.load(Ordering::Relaxed);
        assert_eq!(count, self.signals.load(Ordering::Relaxed));
        count
    }

    /// Has it ring at every second.
    fn ring(&self) {
        for at in [1, 3, 5] {
            write(self, at, 0xff);
        }
        write(self, REGISTER_B, ALARM);
    }
}

const PORT: PioAddress = PioAddress(0x70);

fn read(rtc: &Rtc, index: u8) -> u8 {
    rtc.pio_write(PORT, 0, &[index]);
    let mut byte = [0];
    rtc.pio_read(PORT, 1, &mut byte);
    byte[0]
}

fn write(rtc: &Rtc, index: u8, value: u8) {
    rtc.pio_write(PORT, 0, &[index]);
    rtc.pio_write(PORT, 1, &[value]);
}

fn writer() -> StateWriter {
    StateWriter::new(HeaderInfo {
        mode: Mode::CprTransfer,
        guest_name: "web".into(),
        guest_uuid: Uuid([0; 16]),
        writer: "0.1.0".into(),
        created: 0,
    })
}

fn load(out: StateWriter) -> Result<Bench, DeviceError> {
    let rtc = Bench::new(1 << 30);
    rtc.load(&mut StateReader::parse(&out.finish().unwrap()).unwrap())?;
    Ok(rtc)
}

fn saved(rtc: &Rtc) -> StateWriter {
    let mut out = writer();
    rtc.save(&mut out).unwrap();
    out
}

#[test]
fn what_the_guest_wrote_and_the_time_it_set_survive_a_handover() {
    let source = Bench::new(6 << 30);
    write(&source, 0x40, 0x5a);
    write(&source, 0x09, 0x77);
    write(&source, 0x32, 0x19);
    let target = load(saved(&source)).unwrap();
    assert_eq!((read(&target, 0x40), read(&target, 0x5c)), (0x5a, 0xc0));
    assert_eq!((read(&target, 0x32), read(&target, 0x09)), (0x19, 0x77));
}

#[test]
fn the_same_state_comes_out_as_went_in() {
    let source = Bench::new(1 << 30);
    write(&source, 0x0b, 0x82);
    let first = saved(&source).finish().unwrap();
    let second = saved(&load(saved(&source)).unwrap()).finish().unwrap();
    assert_eq!(first, second);
}

#[test]
fn a_state_that_the_chip_cannot_be_in_is_refused_and_named() {
    let good = RtcState::new(0, &Clock::new(1 << 30, now()));
    let register = |at: usize, value: u8| {
        let mut cmos = good.cmos.clone();
        cmos[at] = value;
        RtcState { cmos, ..good.clone() }
    };
    for (bad, named) in [
        (RtcState { index: 0x80, ..good.clone() }, "index 0x80"),
        (RtcState { cmos: vec![0; 64], ..good.clone() }, "64 bytes of CMOS"),
        (RtcState { offset: i64::MIN, ..good.clone() }, "from the host's"),
        (register(0x0a, 0xa6), "register A 0xa6"),
        (register(0x0c, 0x40), "register C 0x40"),
        (register(0x0c, 0xa0), "register C 0xa0 with register B 0x02"),
        (RtcState { updated: Some(i64::MAX), ..good.clone() }, "last updated"),
        (register(0x0d, 0x00), "register D 0x00"),
    ] {
        let mut out = writer();
        out.put(0, &bad).unwrap();
        let error = load(out).err().expect("refused").to_string();
        assert!(error.starts_with("rtc: saved state is not possible") && error.contains(named), "{error}");
    }
}

#[test]
fn an_alarm_interrupts_by_an_edge_once_until_the_guest_has_looked() {
    let bench = Bench::new(1 << 30);
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(bench.rtc.subscriber());
    assert_eq!(events.run_with_timeout(1_200).unwrap(), 0, "nothing is enabled: the timer is not set");
    bench.ring();
    assert_eq!(bench.interrupts(), 0);
    assert_eq!(events.run_with_timeout(10_000).unwrap(), 1);
    assert_eq!(bench.interrupts(), 1);
    assert_eq!(events.run_with_timeout(1_200).unwrap(), 0, "it was told");
    assert_eq!(read(&bench, REGISTER_C) & RANG, RANG);
    assert_eq!(events.run_with_timeout(10_000).unwrap(), 1);
    assert_eq!(bench.interrupts(), 2);
    write(&bench, REGISTER_B, 0);
    assert_eq!(events.run_with_timeout(1_200).unwrap(), 0);
}

#[test]
fn an_alarm_that_came_while_nobody_had_the_guest_interrupts_where_it_goes_on() {
    let source = Bench::new(1 << 30);
    source.ring();
    source.quiesce(Instant::now()).unwrap();
    // Its timer may expire yet.
    source.expired();
    let out = saved(&source);
    std::thread::sleep(Duration::from_secs(1));
    source.expired();
    let target = load(out).unwrap();
    assert_eq!((source.interrupts(), target.interrupts()), (0, 0));
    target.resume();
    source.resume();
    assert_eq!((source.interrupts(), target.interrupts()), (1, 1));
    target.resume();
    assert_eq!(target.interrupts(), 1, "it was told");
    assert_eq!(read(&target, REGISTER_C) & RANG, RANG);
}

#[test]
fn an_alarm_of_two_days_ago_is_told_of_and_what_was_told_of_goes_along() {
    let mut state = RtcState::new(0, &Clock::new(1 << 30, now() - 2 * 86_400 * SECOND));
    state.cmos[usize::from(REGISTER_B)] = ALARM;
    let with = |state: &RtcState| {
        let mut out = writer();
        out.put(0, state).unwrap();
        load(out).unwrap()
    };
    let late = with(&state);
    late.resume();
    assert_eq!(late.interrupts(), 1);
    let told = load(saved(&late)).unwrap();
    told.resume();
    assert_eq!((told.interrupts(), read(&told, REGISTER_C) & RANG), (0, RANG));
    // Builds that had no alarm did not say how far they had looked.
    state.updated = None;
    let old = with(&state);
    old.resume();
    assert_eq!(old.interrupts(), 0);
}

#[test]
fn version_1_is_read_and_is_written_where_no_interrupt_is_enabled() {
    let old = |state: &RtcState| state.encode(1).and_then(|bytes| RtcState::decode(1, &bytes));
    let mut state = RtcState::new(3, &Clock::new(1 << 30, now()));
    let first = RtcState { updated: None, ..state.clone() };
    assert_eq!(old(&state).unwrap(), first);
    state.cmos[usize::from(REGISTER_C)] = 0x30;
    assert_eq!(old(&state).unwrap(), first);
    for enabled in [0x20, 0x10] {
        state.cmos[usize::from(REGISTER_B)] |= enabled;
        assert!(matches!(old(&state), Err(FormatError::CannotWrite { version: 1, .. })));
    }
}
