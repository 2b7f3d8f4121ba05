//! Both take turns.

use std::fs::{self, File};
use std::io;

use anyhow::{Context, Result};
use guest_init::measure::Measured;

use super::contenders::Contender;
use super::place::Place;
use super::plan::{self, Device, Test};
use super::servers;
use super::table::{Report, Row};

/// How much shorter the first round is, which does not count: what is done for the first time is slow.
const WARM_UP: u64 = 4;
/// How much longer than asked for a measurement takes that stood still, in milliseconds. In the lab each machine does now
/// and then, for half a minute at times.
const STALLED: u64 = 2000;
/// How often a turn is taken again.
const PATIENCE: u32 = 3;

/// Boots both guests and measures them. What went wrong after that is a note: what was measured before holds.
pub fn run(place: &Place, say: impl Fn(&str)) -> Result<Report> {
    fs::create_dir_all(&place.directory)?;
    let mut report =
        Report { other: place.other.name().into(), ms: place.ms, rows: Vec::new(), notes: Vec::new() };
    servers::start()?;
    let ours = Contender::ours(place).context("ours")?;
    say("our guest is up");
    let other = Contender::other(place).with_context(|| report.other.clone())?;
    say("the other guest is up");
    if !place.vhost {
        report.notes.push("no vhost: there is no /dev/vhost-net".into());
    }
    let tests = plan::tests(place);
    for test in &tests {
        let row = |figure: &_| Row { name: test.name.clone(), figure: *figure, rounds: Vec::new() };
        report.rows.extend(test.figures.iter().map(row));
    }
    // The page cache is full of the disks for both.
    for disk in &place.disks {
        io::copy(&mut File::open(disk)?, &mut io::sink()).context("reading a disk")?;
    }
    let mut turns = Turns { place, contenders: [ours, other], stalls: [0; 2] };
    'rounds: for round in 0..=place.rounds {
        let mut rows = report.rows.iter_mut();
        for test in &tests {
            let ms = if round == 0 { (place.ms / WARM_UP).max(1) } else { place.ms };
            say(&format!("round {round} of {}: {}", place.rounds, test.name));
            let [ours, other] = match turns.take(test, ms, round % 2 == 1) {
                Ok(both) => both,
                Err(error) => {
                    report.notes.push(format!("ended in round {round}: {error:#}"));
                    break 'rounds;
                }
            };
            for (figure, row) in test.figures.iter().zip(&mut rows).filter(|_| round > 0) {
                row.rounds.push((figure.of(&ours), figure.of(&other)));
            }
        }
    }
    if turns.stalls != [0; 2] {
        let [ours, other] = turns.stalls;
        let what = format!("stood still for {STALLED} ms or more, and measured again");
        report.notes.push(format!("{what}: {ours} times ours, {other} times the other"));
    }
    Ok(report)
}

/// Takes turns, and keeps count of what stood still.
struct Turns<'a> {
    place: &'a Place,
    contenders: [Contender; 2],
    stalls: [u32; 2],
}

impl Turns<'_> {
    /// One measurement of each, one after the other. Where one stood still, both are made again.
    fn take(&mut self, test: &Test, ms: u64, swapped: bool) -> Result<[Measured; 2]> {
        let mut left = PATIENCE;
        loop {
            let mut both = [Measured::default(), Measured::default()];
            for side in if swapped { [1, 0] } else { [0, 1] } {
                both[side] = self.one(side, test, ms)?;
            }
            let stalled = both.each_ref().map(|measured| measured.ns > (ms + STALLED) * 1_000_000);
            if stalled == [false; 2] || left == 0 {
                return Ok(both);
            }
            left -= 1;
            self.stalls.iter_mut().zip(stalled).for_each(|(stalls, stalled)| *stalls += u32::from(stalled));
        }
    }

    fn one(&self, side: usize, test: &Test, ms: u64) -> Result<Measured> {
        let measured = self.contenders[side].measure(test, ms).with_context(|| test.name.clone())?;
        // What one has written is not to be written out in the turn of the next.
        if let Device::Disk(_) = test.device {
            self.place.disks.iter().try_for_each(|disk| File::open(disk)?.sync_all())?;
        }
        Ok(measured)
    }
}
