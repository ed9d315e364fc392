//! The access log: workers format lines, a separate thread writes them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::line::AccessLogLine;
use crate::settings::AccessLogSection;

/// Bytes that a worker buffers before it sends them to the writer.
const GATHERED: usize = 32 * 1024;
/// Buffers that may wait for the writer; when the channel is full, lines are dropped and counted.
const WAITING: usize = 64;
/// How often the writer checks whether the file was moved away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The access log's handle, shared by all workers.
pub struct AccessLogHandle {
    settings: AccessLogSection,
    pieces: SyncSender<Vec<u8>>,
    dropped: AtomicU64,
}

/// The writer's thread; joined when all workers have ended.
pub struct WriterThread(JoinHandle<()>);

/// One worker's buffer of the access log.
pub struct AccessLog {
    shared: Arc<AccessLogHandle>,
    gathered: Vec<u8>,
    lines: u64,
    /// Accumulates the ratio; a request is logged when it reaches 1.
    due: f64,
}

/// Starts the writer, if the settings enable the log.
///
/// # Errors
/// If the file cannot be opened.
pub fn start(settings: &AccessLogSection) -> io::Result<Option<(Arc<AccessLogHandle>, WriterThread)>> {
    let Some(path) = settings.path.clone() else { return Ok(None) };
    let target = LogTarget::open(path)?;
    let (pieces, waiting) = sync_channel(WAITING);
    let thread = std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || write_lines(target, &waiting))?;
    let shared = AccessLogHandle { settings: settings.clone(), pieces, dropped: AtomicU64::new(0) };
    Ok(Some((Arc::new(shared), WriterThread(thread))))
}

impl WriterThread {
    /// Waits until everything is written. Call it after all clones of [`AccessLogHandle`] were dropped.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the access log's writer has panicked");
        }
    }
}

impl AccessLogHandle {
    /// Lines that were dropped because the writer was too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl AccessLog {
    /// An empty buffer of a worker.
    pub fn new(shared: Arc<AccessLogHandle>) -> AccessLog {
        AccessLog { shared, gathered: Vec::new(), lines: 0, due: 0.0 }
    }

    /// Adds a line, if the settings select the request. Notable requests are logged whatever the ratio.
    pub fn add<'a>(
        &mut self,
        notable: bool,
        status: u16,
        duration: Duration,
        line: impl FnOnce() -> AccessLogLine<'a>,
    ) {
        let settings = &self.shared.settings;
        if status < settings.min_status || duration < settings.slower_than {
            return;
        }
        if !notable {
            self.due += settings.ratio;
            if self.due < 1.0 {
                return;
            }
            self.due -= 1.0;
        }
        line().write(settings.format, &mut self.gathered);
        self.lines += 1;
        if self.gathered.len() >= GATHERED {
            self.flush();
        }
    }

    /// Sends the buffered lines to the writer.
    pub fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        match self.shared.pieces.try_send(std::mem::take(&mut self.gathered)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.dropped.fetch_add(lines, Relaxed);
            }
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Where lines are written.
enum LogTarget {
    Stdout,
    File { path: PathBuf, file: File, looked_at: Instant },
}

impl LogTarget {
    fn open(path: PathBuf) -> io::Result<LogTarget> {
        if path == Path::new("-") {
            return Ok(LogTarget::Stdout);
        }
        let file = open_file(&path)?;
        Ok(LogTarget::File { path, file, looked_at: Instant::now() })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            LogTarget::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(piece)?;
                out.flush()
            }
            LogTarget::File { path, file, looked_at } => {
                if looked_at.elapsed() >= LOOK_EVERY {
                    *looked_at = Instant::now();
                    if was_moved(path, file) {
                        *file = open_file(path)?;
                    }
                }
                file.write_all(piece)
            }
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Whether the file at `path` is missing or no longer `file`: then the log was rotated.
fn was_moved(path: &Path, file: &File) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    std::fs::metadata(path).ok().map(identity) != file.metadata().ok().map(identity)
}

fn write_lines(mut target: LogTarget, waiting: &Receiver<Vec<u8>>) {
    let mut failing = false;
    while let Ok(piece) = waiting.recv() {
        match target.write(&piece) {
            Ok(()) => failing = false,
            // Logged once, not for each buffer.
            Err(error) if !failing => {
                failing = true;
                tracing::error!(%error, "the access log cannot be written");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_moved_away_is_begun_anew() {
        let folder = std::env::temp_dir().join(format!("tidegate-access-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("access.log");
        let mut target = LogTarget::open(path.clone()).unwrap();
        target.write(b"one\n").unwrap();
        std::fs::rename(&path, folder.join("access.log.1")).unwrap();
        if let LogTarget::File { looked_at, .. } = &mut target {
            *looked_at -= LOOK_EVERY;
        }
        target.write(b"two\n").unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!((read("access.log.1"), read("access.log")), ("one\n".to_owned(), "two\n".to_owned()));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
