//! Tasks that end with whoever began them.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Tasks that were begun together. Dropping it tells them to end.
#[derive(Debug, Default)]
pub(crate) struct Background {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Background {
    /// Begins a task, which ends by itself when its token is cancelled.
    pub fn with<Task: Future<Output = ()> + Send + 'static>(
        mut self,
        task: impl FnOnce(CancellationToken) -> Task,
    ) -> Background {
        self.tasks.push(tokio::spawn(task(self.stop.clone())));
        self
    }

    /// Ends them and waits for the end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        for task in std::mem::take(&mut self.tasks) {
            // It only fails when it panicked.
            _ = task.await;
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
