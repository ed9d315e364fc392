//! Shutdown by SIGTERM or SIGINT: the first signal drains, the second one ends the process at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code after a second signal: what a shell reports for SIGINT.
const AT_ONCE: i32 = 130;

/// A token that is cancelled at the first SIGTERM or SIGINT. At the second the process ends at once.
///
/// # Errors
/// When the signals can't be listened for.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    // The task ends with the runtime: signals have to be handled until then.
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if stop.is_cancelled() {
                tracing::warn!(signal = name, "a second signal: the process ends at once");
                std::process::exit(AT_ONCE);
            }
            tracing::info!(signal = name, "shutting down");
            stop.cancel();
        }
    });
    Ok(token)
}
