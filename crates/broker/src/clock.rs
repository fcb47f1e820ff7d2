//! What time it is, for the stages: the machine's time, or a simulation's.
//!
//! Whatever a stage decides by the time of day (when a retry is due, whether an event has expired)
//! it asks here and nowhere else, so that a simulation can run days in a second and twice the same.

use jiff::Timestamp;

/// The time of day.
pub fn now() -> Timestamp {
    #[cfg(feature = "sim")]
    if let Some(now) = crate::sim::now() {
        return now;
    }
    Timestamp::now()
}
