//! Deliveries counted by day, week or month.

use std::collections::BTreeMap;

use event::reason::DeliveryState;
use jiff::{SignedDuration, Timestamp, ToSpan, civil::Date, tz::TimeZone};

use super::{DeliveryFilter, Period, PeriodCount, deliveries::narrow};
use crate::{
    Error, Sight, Store,
    database::{Statement, within},
};

impl Store {
    /// How many deliveries there are in each state and period, oldest period first; periods
    /// without any are left out. A period is the UTC day, week or month of the event's acceptance.
    pub async fn delivery_periods(
        &self,
        sight: &Sight,
        filter: &DeliveryFilter,
        period: Period,
    ) -> Result<Vec<PeriodCount>, Error> {
        if filter.contradicts_itself() {
            return Ok(Vec::new());
        }
        within(async {
            let sqlite = self.database().is_sqlite();
            let mut statement = Statement::new("SELECT day, state, COUNT(*) FROM deliveries");
            if sqlite {
                statement.text(filter.index(sight));
            }
            statement.text(" WHERE 1 = 1");
            narrow(&mut statement, sqlite, sight, filter)?;
            statement.text(" GROUP BY day, state");
            let rows: Vec<(i64, String, i64)> = self.database().rows(statement).await?;
            let mut periods: BTreeMap<Date, BTreeMap<DeliveryState, u64>> = BTreeMap::new();
            for (day, state, count) in rows {
                let unknown = || Error::Fatal(format!("the state {state:?} is not known"));
                let state = DeliveryState::from_word(&state).ok_or_else(unknown)?;
                let states = periods.entry(start(day, period)).or_default();
                *states.entry(state).or_default() += u64::try_from(count).unwrap_or(0);
            }
            let count = |(start, states): (Date, BTreeMap<DeliveryState, u64>)| PeriodCount {
                start,
                total: states.values().sum(),
                states,
            };
            Ok(periods.into_iter().map(count).collect())
        })
        .await
    }
}

/// The first day of the period that a day, counted from 1970, is in.
fn start(day: i64, period: Period) -> Date {
    let at = Timestamp::UNIX_EPOCH.saturating_add(SignedDuration::from_hours(day * 24));
    // Any day that a time of the store can be of.
    let date = at
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::UTC)
        .date();
    match period {
        Period::Day => date,
        Period::Week => {
            date.saturating_sub(i64::from(date.weekday().to_monday_zero_offset()).days())
        }
        Period::Month => date.first_of_month(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_begins_on_its_first_day() {
        // 1970-01-01 was a Thursday.
        let cases = [
            (0, "1970-01-01", "1969-12-29", "1970-01-01"),
            (3, "1970-01-04", "1969-12-29", "1970-01-01"),
            (4, "1970-01-05", "1970-01-05", "1970-01-01"),
            (-1, "1969-12-31", "1969-12-29", "1969-12-01"),
            (20_512, "2026-02-28", "2026-02-23", "2026-02-01"),
            (20_513, "2026-03-01", "2026-02-23", "2026-03-01"),
        ];
        for (day, by_day, by_week, by_month) in cases {
            assert_eq!(start(day, Period::Day).to_string(), by_day);
            assert_eq!(start(day, Period::Week).to_string(), by_week);
            assert_eq!(start(day, Period::Month).to_string(), by_month);
        }
    }
}
