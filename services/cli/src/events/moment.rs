//! Points in time as text.

use tidegate_model::Timestamp;
use time::OffsetDateTime;

/// A time as RFC 3339 has it, in UTC, to the millisecond.
pub fn moment(at: Timestamp) -> String {
    let Ok(t) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1000) else {
        return format!("{} µs", at.0);
    };
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second, millis) = t.to_hms_milli();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z", u8::from(month))
}
