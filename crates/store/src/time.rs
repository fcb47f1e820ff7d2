//! How times lie in the database: whole nanoseconds since 1970, so that none is rounded and both
//! databases compare them as numbers. That reaches from 1677 to 2262; beyond, the end stands.

use jiff::Timestamp;

pub(crate) fn write(time: Timestamp) -> i64 {
    let end = if time < Timestamp::UNIX_EPOCH {
        i64::MIN
    } else {
        i64::MAX
    };
    i64::try_from(time.as_nanosecond()).unwrap_or(end)
}

pub(crate) fn read(nanoseconds: i64) -> Timestamp {
    // Every i64 of nanoseconds is a time that jiff knows.
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_exactly_and_far_ones_keep_their_side() {
        for nanoseconds in [i64::MIN, -1, 0, 1_763_800_000_123_456_789, i64::MAX] {
            assert_eq!(write(read(nanoseconds)), nanoseconds);
        }
        assert_eq!(write(Timestamp::MAX), i64::MAX);
        assert_eq!(write(Timestamp::MIN), i64::MIN);
    }
}
