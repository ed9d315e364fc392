//! `tidegate status`.

mod gather;
mod text;

use std::{fmt, time::Duration};

use crate::say::{say, say_line};
use crate::{arguments::BusOptions, link};

/// How long to listen for edges, which report once a second.
const LISTEN: Duration = Duration::from_millis(1300);
/// The refresh interval of `--watch`.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// The status shows a problem.
#[derive(Debug)]
pub struct NotWell;

impl fmt::Display for NotWell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the status shows problems")
    }
}

impl std::error::Error for NotWell {}

/// Shows the status; fails afterwards where some of it could not be read, or it shows a problem.
pub async fn status(json: bool, watch: bool, options: &BusOptions) -> anyhow::Result<()> {
    let bus = link::connect(options).await?;
    let mut gatherer = gather::Gatherer::start(&bus).await?;
    gatherer.listen(LISTEN).await?;
    loop {
        let status = gatherer.status(&bus).await;
        if json {
            say_line(serde_json::to_string(&status)?)?;
        } else {
            if watch {
                // Clears the screen and goes to its top.
                say("\x1b[2J\x1b[H")?;
            }
            say(text::text(&status))?;
        }
        if !watch {
            anyhow::ensure!(status.problems.is_empty(), "not all could be read");
            return if status.is_well() { Ok(()) } else { Err(NotWell.into()) };
        }
        gatherer.listen(REFRESH_INTERVAL).await?;
    }
}
