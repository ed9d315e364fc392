//! The `date` of responses.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// The text of a date, 29 bytes (RFC 9110, section 5.6.7).
#[derive(Clone, Copy)]
pub struct DateText([u8; 29]);

impl DateText {
    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

thread_local! {
    static CACHED: RefCell<Option<(Instant, DateText)>> = const { RefCell::new(None) };
}

/// The current date, at most a second old.
pub fn http_date() -> DateText {
    let now = Instant::now();
    CACHED.with_borrow_mut(|cached| match cached {
        Some((until, text)) if now < *until => *text,
        _ => {
            let system = SystemTime::now();
            let into_second =
                system.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            let mut text = [b' '; 29];
            let formatted = httpdate::fmt_http_date(system);
            text.copy_from_slice(&formatted.as_bytes()[..29]);
            let until = now + Duration::from_nanos(u64::from(1_000_000_000 - into_second));
            cached.insert((until, DateText(text))).1
        }
    })
}
