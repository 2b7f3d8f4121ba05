//! Days of the proleptic Gregorian calendar, counted from 1970-01-01.

/// A day's date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31; [`Date::to_days`] carries what is over the month's end.
    pub day: i64,
}

/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;
/// 1970-01-01, counted from 0000-03-01.
const EPOCH: i64 = 719_468;

impl Date {
    /// The date that is `days` after 1970-01-01.
    pub fn from_days(days: i64) -> Self {
        // Years start in March here, so that the leap day is the last.
        let days = days + EPOCH;
        let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        Self { year: year + era * 400 + next, month, day }
    }

    /// How many days after 1970-01-01 it is.
    pub fn to_days(self) -> i64 {
        let (year, month) =
            if self.month > 2 { (self.year, self.month - 3) } else { (self.year - 1, self.month + 9) };
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * month + 2) / 5 + self.day - 1;
        era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days_have_their_dates() {
        for (days, year, month, day) in [
            (0, 1970, 1, 1),
            (-1, 1969, 12, 31),
            (11_016, 2000, 2, 29),
            (19_782, 2024, 2, 29),
            (47_541, 2100, 3, 1),
        ] {
            assert_eq!(Date::from_days(days), Date { year, month, day });
            assert_eq!(Date { year, month, day }.to_days(), days);
        }
    }

    #[test]
    fn each_day_of_ten_thousand_years_comes_after_the_one_before() {
        let first = Date { year: 0, month: 1, day: 1 }.to_days();
        for days in first..first + 25 * ERA {
            assert_eq!(Date::from_days(days).to_days(), days);
        }
    }
}
