use super::*;
use crate::config::Uuid;
use crate::cpr::Mode;
use crate::cpr::format::HeaderInfo;

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

fn load(out: StateWriter) -> Result<Rtc, DeviceError> {
    let rtc = Rtc::new(1 << 30);
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
    let source = Rtc::new(6 << 30);
    write(&source, 0x40, 0x5a);
    write(&source, 0x09, 0x77);
    write(&source, 0x32, 0x19);
    let target = load(saved(&source)).unwrap();
    assert_eq!((read(&target, 0x40), read(&target, 0x5c)), (0x5a, 0xc0));
    assert_eq!((read(&target, 0x32), read(&target, 0x09)), (0x19, 0x77));
}

#[test]
fn the_same_state_comes_out_as_went_in() {
    let source = Rtc::new(1 << 30);
    write(&source, 0x0b, 0x82);
    let first = saved(&source).finish().unwrap();
    let second = saved(&load(saved(&source)).unwrap()).finish().unwrap();
    assert_eq!(first, second);
}

#[test]
fn a_state_that_the_chip_cannot_be_in_is_refused_and_named() {
    let good = RtcState::new(0, &Clock::new(1 << 30));
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
        (register(0x0c, 0x10), "register C 0x10"),
        (register(0x0d, 0x00), "register D 0x00"),
    ] {
        let mut out = writer();
        out.put(0, &bad).unwrap();
        let error = load(out).err().expect("refused").to_string();
        assert!(error.starts_with("rtc: saved state is not possible") && error.contains(named), "{error}");
    }
}
