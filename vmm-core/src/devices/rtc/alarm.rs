//! When the alarm is due.

use super::calendar::Date;
use super::clock::DAY_SECONDS;

/// Days within which every date comes that comes at all: February 29 may be missing for eight years.
const DAYS: i64 = 8 * 366;

/// What a time must be for the alarm to match it; nothing matches any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Alarm {
    /// 0 to 59.
    pub second: Option<i64>,
    /// 0 to 59.
    pub minute: Option<i64>,
    /// 0 to 23.
    pub hour: Option<i64>,
    /// Of the month.
    pub day: Option<i64>,
    /// 1 to 12.
    pub month: Option<i64>,
}

impl Alarm {
    /// The first second after this one, both counted from 1970, that it matches; none if it matches no time at all.
    pub fn next(&self, after: i64) -> Option<i64> {
        let first = after + 1;
        let (today, of_day) = (first.div_euclid(DAY_SECONDS), first.rem_euclid(DAY_SECONDS));
        (today..=today + DAYS).filter(|days| self.is_on(*days)).find_map(|days| {
            let from = if days == today { of_day } else { 0 };
            Some(days * DAY_SECONDS + self.of_day(from)?)
        })
    }

    fn is_on(&self, days: i64) -> bool {
        if (self.day, self.month) == (None, None) {
            return true;
        }
        let date = Date::from_days(days);
        is(self.day, date.day) && is(self.month, date.month)
    }

    /// The first second of a day, from this one on, that it matches.
    fn of_day(&self, from: i64) -> Option<i64> {
        let (hour, minute, second) = (from / 3600, from / 60 % 60, from % 60);
        let seconds = |from| (from..60).find(|second| is(self.second, *second));
        let minutes = |from, first_second| {
            (from..60).filter(|minute| is(self.minute, *minute)).find_map(|minute| {
                Some(minute * 60 + seconds(if minute == from { first_second } else { 0 })?)
            })
        };
        (hour..24).filter(|hour| is(self.hour, *hour)).find_map(|at| {
            let (minute, second) = if at == hour { (minute, second) } else { (0, 0) };
            Some(at * 3600 + minutes(minute, second)?)
        })
    }
}

fn is(wanted: Option<i64>, value: i64) -> bool {
    wanted.is_none_or(|wanted| wanted == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20 21:35:19 UTC.
    const NOW: i64 = 1_795_210_519;
    const HOUR: i64 = 3600;
    const DAY: i64 = DAY_SECONDS;

    #[test]
    fn an_alarm_comes_at_its_time_today_or_tomorrow_and_never_now() {
        let at = |hour, minute, second| Alarm {
            second: Some(second),
            minute: Some(minute),
            hour: Some(hour),
            ..Alarm::default()
        };
        assert_eq!(at(21, 35, 20).next(NOW), Some(NOW + 1));
        assert_eq!(at(21, 35, 19).next(NOW), Some(NOW + DAY));
        assert_eq!(at(21, 34, 59).next(NOW), Some(NOW + DAY - 20));
        assert_eq!(at(22, 0, 0).next(NOW), Some(NOW + 24 * 60 + 41));
    }

    #[test]
    fn what_it_does_not_care_for_repeats_it() {
        let every = Alarm::default();
        assert_eq!(every.next(NOW), Some(NOW + 1));
        let minute = Alarm { second: Some(19), ..every };
        assert_eq!(minute.next(NOW), Some(NOW + 60));
        let hour = Alarm { minute: Some(35), ..minute };
        assert_eq!((hour.next(NOW - 1), hour.next(NOW)), (Some(NOW), Some(NOW + HOUR)));
        let seconds_of_an_hour = Alarm { hour: Some(21), ..every };
        assert_eq!(seconds_of_an_hour.next(NOW + 24 * 60 + 40), Some(NOW - 35 * 60 - 19 + DAY));
    }

    #[test]
    fn a_date_is_waited_for_and_one_that_never_comes_is_none() {
        let on = |month, day| Alarm { day: Some(day), month: Some(month), ..Alarm::default() };
        let midnight = |year, month, day| Some(Date { year, month, day }.to_days() * DAY);
        assert_eq!(on(11, 20).next(NOW), Some(NOW + 1));
        assert_eq!(on(11, 19).next(NOW), midnight(2027, 11, 19));
        assert_eq!(on(2, 29).next(NOW), midnight(2028, 2, 29));
        assert_eq!(
            on(2, 29).next(Date { year: 2096, month: 3, day: 1 }.to_days() * DAY),
            midnight(2104, 2, 29)
        );
        assert_eq!(Alarm { day: Some(31), ..Alarm::default() }.next(NOW), midnight(2026, 12, 31));
        assert_eq!(on(2, 30).next(NOW), None);
    }

    #[test]
    fn it_is_the_same_as_looking_at_each_second() {
        let mut after = NOW;
        for (second, minute, hour) in
            [(Some(7), None, None), (None, Some(59), None), (Some(0), Some(0), Some(0))]
        {
            let alarm = Alarm { second, minute, hour, ..Alarm::default() };
            let matches = |at: &i64| {
                let of_day = at.rem_euclid(DAY);
                is(second, of_day % 60) && is(minute, of_day / 60 % 60) && is(hour, of_day / HOUR)
            };
            for _ in 0..100 {
                let expected = (after + 1..=after + DAY).find(matches);
                assert_eq!(alarm.next(after), expected);
                after = expected.unwrap();
            }
        }
    }
}
