//! Numbers and times as people write them.

use std::time::Duration;

/// A count with its noun: `1 cluster`, `3 clusters`.
pub fn format_count(number: usize, noun: &str) -> String {
    match (number, noun) {
        (1, noun) => format!("1 {noun}"),
        (number, noun) => format!("{number} {noun}s"),
    }
}

/// A time span by its two largest units: `59 m 57 s`, `2 d 3 h`, `0.4 s`.
pub fn format_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let units =
        [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let largest = units.iter().position(|(value, _)| *value > 0);
    match largest {
        None => format!("{:.1} s", time.as_secs_f64()),
        Some(at) => {
            let parts = units[at..].iter().take(2).filter(|(value, _)| *value > 0);
            parts.map(|(value, unit)| format!("{value} {unit}")).collect::<Vec<_>>().join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_written_as_people_do() {
        assert_eq!(
            [format_count(0, "cluster"), format_count(1, "cluster"), format_count(2, "cluster")],
            ["0 clusters", "1 cluster", "2 clusters"]
        );
        for (millis, text) in [
            (400, "0.4 s"),
            (1000, "1 s"),
            (3_597_000, "59 m 57 s"),
            (3_600_000, "1 h"),
            (183_600_000, "2 d 3 h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
    }
}
