//! HAProxy and nginx as processes, each in front of an origin that records what it is sent.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::harness::{DEADLINE, eventually, peer::Message};

/// A proxy that reads what the edge forwards.
pub struct Reader {
    /// `haproxy` or `nginx`.
    pub name: &'static str,
    process: Child,
    directory: PathBuf,
}

impl Reader {
    /// HAProxy in front of `origin`; with `is_http2` it is spoken to over HTTP/2.
    pub fn haproxy(origin: SocketAddr, is_http2: bool) -> Reader {
        let directory = directory("haproxy");
        let socket = directory.join("in").display().to_string();
        let mut text = "defaults\n  mode http\n  retries 0\n  option http-server-close\n".to_owned();
        for what in ["connect", "client", "server", "http-request"] {
            // Writing to a String does not fail.
            _ = writeln!(text, "  timeout {what} 10s");
        }
        let protocol = if is_http2 { " proto h2" } else { "" };
        _ = writeln!(text, "frontend f\n  bind unix@{socket}{protocol}\n  default_backend b");
        _ = writeln!(text, "backend b\n  server origin {origin}");
        let file = directory.join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(file);
        Reader::start("haproxy", command, directory)
    }

    /// nginx in front of `origin`, likewise.
    pub fn nginx(origin: SocketAddr, is_http2: bool) -> Reader {
        let directory = directory("nginx");
        let here = directory.display();
        let protocol = if is_http2 { " http2" } else { "" };
        let text = format!(
            "daemon off; master_process off; pid {here}/pid; error_log {here}/log;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n\
               access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;\n\
               large_client_header_buffers 8 64k; underscores_in_headers on;\n\
               server {{ listen unix:{here}/in{protocol}; location / {{\n\
                 proxy_pass http://{origin}; proxy_http_version 1.1; proxy_set_header Host $http_host;\n\
                 proxy_next_upstream off; proxy_read_timeout 10s; proxy_buffer_size 64k; proxy_buffers 8 64k;\n\
                 proxy_busy_buffers_size 128k; gzip off;\n\
               }} }}\n\
             }}\n"
        );
        let file = directory.join("nginx.conf");
        fs::write(&file, text).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-e").arg(directory.join("log"));
        Reader::start("nginx", command, directory)
    }

    fn start(name: &'static str, mut command: Command, directory: PathBuf) -> Reader {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name} is needed by this test and cannot be run: {error}"));
        let socket = directory.join("in");
        let reader = Reader { name, process, directory };
        eventually(name, || UnixStream::connect(&socket).is_ok());
        reader
    }

    /// Sends `bytes` on a connection of their own, with `ends` as all that will come, and reads until its end.
    pub fn ask(&self, bytes: &[u8], ends: bool) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.directory.join("in")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // It may refuse what comes and not read the rest.
        _ = stream.write_all(bytes);
        if ends {
            _ = stream.shutdown(Shutdown::Write);
        }
        rest(&mut stream, self.name, bytes)
    }

    /// An address where it can be reached over TCP.
    pub fn address(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, socket) = (listener.local_addr().unwrap(), self.directory.join("in"));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                // It has ended with the test.
                let Ok(far) = UnixStream::connect(&socket) else { return };
                near.set_nodelay(true).unwrap();
                let (mut from_near, mut to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (mut from_far, mut to_near) = (far, near);
                std::thread::spawn(move || {
                    _ = io::copy(&mut from_near, &mut to_far);
                    _ = to_far.shutdown(Shutdown::Write);
                });
                std::thread::spawn(move || {
                    _ = io::copy(&mut from_far, &mut to_near);
                    _ = to_near.shutdown(Shutdown::Write);
                });
            }
        });
        address
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has shown by then.
        _ = self.process.kill();
        _ = self.process.wait();
        _ = fs::remove_dir_all(&self.directory);
    }
}

fn directory(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("tidegate-{name}-{}-{count}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// All until the end of a connection.
#[track_caller]
pub fn rest(stream: &mut impl Read, who: &str, sent: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            panic!("{who} does not end: {} for {}", all.escape_ascii(), sent.escape_ascii())
        }
        Ok(_) | Err(_) => all,
    }
}

/// A message at the start of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Whole, and its length in bytes.
    Whole(Message, usize),
    /// Its head, and as much of its body as is there.
    Unended(Message),
    /// Not even a head.
    None,
}

/// Reads the message at the start of `bytes`, as strictly as what the edge writes allows; `until_end` says that a body
/// without framing goes on to the end, which is there if `ended`.
pub fn read(bytes: &[u8], until_end: bool, ended: bool) -> Part {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Part::None };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let mut message = Message { line, fields: lines.map(field).collect(), ..Message::default() };
    let body = &bytes[end + 4..];
    if message.field("transfer-encoding").is_some() {
        let whole = chunks(body, &mut message);
        return whole.map_or(Part::Unended(message.clone()), |length| Part::Whole(message, end + 4 + length));
    }
    let length = message.field("content-length").map(|length| length.parse().unwrap_or(usize::MAX));
    let wanted = length.unwrap_or(if until_end { body.len() } else { 0 });
    message.body = body[..wanted.min(body.len())].to_vec();
    let is_whole = body.len() >= wanted && (length.is_some() || !until_end || ended);
    if is_whole { Part::Whole(message, end + 4 + wanted) } else { Part::Unended(message) }
}

/// Decodes a chunked body into `message`. Returns its length; nothing when it has not ended, or is not one.
fn chunks(bytes: &[u8], message: &mut Message) -> Option<usize> {
    let mut at = 0;
    loop {
        let size = usize::from_str_radix(&line(bytes, &mut at)?, 16).ok()?;
        if size == 0 {
            break;
        }
        message.body.extend(&bytes[at..bytes.len().min(at.saturating_add(size))]);
        at = at.checked_add(size).filter(|at| *at <= bytes.len())?;
        if !line(bytes, &mut at)?.is_empty() {
            return None;
        }
    }
    loop {
        match line(bytes, &mut at)? {
            line if line.is_empty() => return Some(at),
            line if line.contains(':') => message.trailers.push(field(&line)),
            _ => return None,
        }
    }
}

fn line(bytes: &[u8], at: &mut usize) -> Option<String> {
    let rest = &bytes[*at..];
    let length = rest.windows(2).position(|two| two == b"\r\n")?;
    *at += length + 2;
    Some(String::from_utf8_lossy(&rest[..length]).into_owned())
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field: {line:?}"));
    (name.to_lowercase(), value.trim_matches([' ', '\t']).to_owned())
}

/// An origin that keeps the bytes of each connection.
#[derive(Clone)]
pub struct Recorder {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// What came on connections that have ended, in the order of their beginning.
    records: Mutex<Vec<(usize, Vec<u8>)>>,
    begun: AtomicUsize,
    open: AtomicUsize,
    /// What it answers.
    response: Mutex<Vec<u8>>,
}

impl Recorder {
    /// A recorder that answers with 200.
    pub fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let response = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let state = Arc::new(State {
            records: Mutex::default(),
            begun: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            response: Mutex::new(response.to_vec()),
        });
        std::thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming() {
                    let (state, stream) = (state.clone(), stream.unwrap());
                    state.open.fetch_add(1, Ordering::SeqCst);
                    let number = state.begun.fetch_add(1, Ordering::SeqCst);
                    std::thread::spawn(move || {
                        let record = state.serve(stream);
                        state.records.lock().unwrap().push((number, record));
                        state.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Recorder { address, state }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers with `bytes` from now on.
    pub fn answer_with(&self, bytes: &[u8]) {
        *self.state.response.lock().unwrap() = bytes.to_vec();
    }

    /// What came on each connection since this was last asked, once all have ended.
    pub fn take(&self) -> Vec<Vec<u8>> {
        eventually("the connections to a recorder end", || self.state.open.load(Ordering::SeqCst) == 0);
        let mut records = std::mem::take(&mut *self.state.records.lock().unwrap());
        records.sort_by_key(|(number, _)| *number);
        records.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

impl State {
    /// Answers the first request on a connection and ends its direction. Returns all that came until the other's end.
    fn serve(&self, mut stream: TcpStream) -> Vec<u8> {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (mut all, mut is_answered, mut expects) = (Vec::new(), false, true);
        let mut buffer = [0; 16 * 1024];
        loop {
            match if is_answered { Part::None } else { read(&all, false, false) } {
                Part::Whole(..) => {
                    is_answered = true;
                    _ = stream.write_all(&self.response.lock().unwrap().clone());
                    // What it sends all the same is read to its end.
                    _ = stream.shutdown(Shutdown::Write);
                }
                Part::Unended(head) if expects && head.field("expect").is_some() => {
                    expects = false;
                    _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Part::Unended(_) | Part::None => {}
            }
            match stream.read(&mut buffer) {
                Ok(count) if count > 0 => all.extend_from_slice(&buffer[..count]),
                Ok(_) | Err(_) => return all,
            }
        }
    }
}
