//! The filter of the log.

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Parses directives such as `info,tidegate_bus=debug`.
///
/// `tracing` reads a word that is no level as a target with the level `trace`, so that a misspelt level would silence the
/// log. A target therefore needs its level here.
///
/// # Errors
/// Why the directives can't be parsed.
pub fn parse_log_filter(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').filter(|directive| !directive.is_empty()) {
        // A directive for spans ends with a bracket where it has no level.
        if directive.ends_with(']') {
            continue;
        }
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "there is no level {level:?}: it is one of error, warn, info, debug, trace and off"
            ));
        }
    }
    text.parse::<EnvFilter>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_does_not_exist_is_an_error() {
        for good in [
            "",
            "info",
            "OFF",
            "info,tidegate_bus=debug",
            "warn,a::b=trace",
            "info,[request{id=1}]=debug",
            "a[span]",
        ] {
            assert!(parse_log_filter(good).is_ok(), "{good}");
        }
        let wrong = [
            ("loud", "loud"),
            ("info,a=debgu", "debgu"),
            ("tidegate_bus", "tidegate_bus"),
            ("[a]=inof", "inof"),
        ];
        for (bad, level) in wrong {
            let error = parse_log_filter(bad).unwrap_err();
            assert!(error.contains(&format!("{level:?}")) && error.contains("debug"), "{bad}: {error}");
        }
    }
}
