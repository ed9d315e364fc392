//! Looking for new files while TLS is in use.

use std::{fmt::Debug, sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::TlsError;

/// TLS that is made from files and can be made anew from them.
pub trait Renewable: Debug + Send + Sync {
    /// Reads the files. Returns whether they had changed and are in use now; new connections use them from then on.
    /// Blocks for as long as reading takes.
    ///
    /// # Errors
    /// The files can't be used. What was in use before stays so; contents that were refused are not tried again until
    /// they change, so the error comes once. Files that can't be read are tried, and reported, each time.
    fn renew(&self) -> Result<bool, TlsError>;

    /// Why the newest contents of the files are not in use; nothing when they are.
    fn problem(&self) -> Option<String>;
}

/// Renews `tls` every `interval` until `shutdown`, and logs what came of it: a problem once, until it is another one.
pub async fn watch(tls: Arc<dyn Renewable>, interval: Duration, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = None;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let renewing = tls.clone();
        let Ok(outcome) = tokio::task::spawn_blocking(move || renewing.renew()).await else {
            // Only a panic within, or a runtime that is going down, ends here.
            return;
        };
        match outcome {
            Ok(true) => info!(?tls, "new certificates are in use"),
            Ok(false) => {}
            Err(error) => {
                let problem = Some(error.to_string());
                if reported != problem {
                    warn!(?tls, %error, "new certificates are refused, the old ones stay in use");
                }
                reported = problem;
                continue;
            }
        }
        reported = tls.problem();
    }
}
