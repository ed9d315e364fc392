//! Background tasks that end with their owner.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A group of background tasks. Dropping it cancels them.
#[derive(Debug, Default)]
pub(crate) struct Background {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts a task, which ends when its token is cancelled.
    pub fn with<Task: Future<Output = ()> + Send + 'static>(
        mut self,
        task: impl FnOnce(CancellationToken) -> Task,
    ) -> Background {
        self.tasks.push(tokio::spawn(task(self.stop.clone())));
        self
    }

    /// Cancels the tasks and waits for their end.
    pub async fn stop(mut self) {
        self.stop.cancel();
        for task in std::mem::take(&mut self.tasks) {
            // Joining fails only when the task panicked.
            _ = task.await;
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
