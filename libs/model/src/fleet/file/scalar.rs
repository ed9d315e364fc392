//! Quantities as they are written: `250ms`, `64KiB`, `20%`.

use std::time::Duration;

/// Units of time with their length in microseconds.
const TIMES: &[(&str, u64)] =
    &[("us", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];
/// Units of size with their length in bytes.
const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// What a duration looks like, as a regular expression for the schema.
pub(super) const DURATION_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h)$";
/// What a size looks like, as a regular expression for the schema.
pub(super) const SIZE_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(B|kB|KB|MB|GB|KiB|MiB|GiB)?$";
/// What a percentage looks like, as a regular expression for the schema.
pub(super) const PERCENT_PATTERN: &str = r"^[0-9]{1,3}%$";

/// A time above zero and at most a day, such as `250ms`, `1.5s` or `2m`.
///
/// # Errors
/// What is wrong, in words.
pub fn duration(text: &str) -> Result<Duration, String> {
    let micros = quantity(text, TIMES).ok_or_else(|| match text.parse::<f64>() {
        Ok(_) => format!("{text} has no unit: a time is written as {text}ms or {text}s"),
        Err(_) => format!("{text:?} is not a time such as 250ms, 1.5s or 2m"),
    })?;
    match micros {
        0 => Err(format!("{text} is no time at all")),
        1..=86_400_000_000 => Ok(Duration::from_micros(micros)),
        _ => Err(format!("{text} is longer than a day")),
    }
}

/// A number of bytes, such as `10MB`, `64KiB` or `512`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    quantity(text, SIZES).ok_or_else(|| format!("{text:?} is not a size such as 10MB, 64KiB or 512"))
}

/// A share in percent, 0 to 100, such as `20%`.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    text.strip_suffix('%')
        .filter(|digits| digits.len() <= 3 && digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| format!("{text:?} is not a share such as 20%, from 0% to 100%"))
}

/// A number with one of `units`, in the smallest unit.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    // Digits below a nanosecond's share of any unit can't matter, and would only overflow.
    let fraction = &fraction[..fraction.len().min(9)];
    let part = fraction.parse::<u64>().ok()?.checked_mul(scale)? / 10u64.pow(fraction.len() as u32);
    whole.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "5",
            "ms",
            "1 s",
            "-1s",
            "1.s",
            ".5s",
            "1.2.3s",
            "0s",
            "25h",
            "1e3s",
            "99999999999999999999h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_decimal_or_binary() {
        assert_eq!(size("10MB"), Ok(10_000_000));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("0.5KiB"), Ok(512));
        assert_eq!(size("512"), Ok(512));
        for wrong in ["", "MB", "10mb", "10 MB", "-1", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_are_at_most_all() {
        assert_eq!(percent("20%"), Ok(20));
        assert_eq!(percent("100%"), Ok(100));
        for wrong in ["20", "101%", "-1%", "+1%", "%", "2.5%"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
