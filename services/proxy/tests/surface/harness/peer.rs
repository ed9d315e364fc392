//! One end of an HTTP/1.x connection, byte by byte: the client's in most tests, and the origin's.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use super::DEADLINE;

/// A connection. Reading fails the test when nothing comes within [`DEADLINE`].
pub struct Peer {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// A message: its head, and its body as the framing says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The first line.
    pub line: String,
    /// The fields in order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// The status of an answer.
    #[track_caller]
    pub fn status(&self) -> u16 {
        let status = self.line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        status.unwrap_or_else(|| panic!("not an answer: {self:?}"))
    }

    /// The only value of a field; nothing when it is absent.
    #[track_caller]
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values =
            self.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there more than once: {self:?}");
        value
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

impl Peer {
    /// A new connection to `address`.
    pub fn connect(address: SocketAddr) -> Peer {
        Peer::new(TcpStream::connect(address).unwrap())
    }

    /// Connects from another network of this machine's.
    pub fn connect_from(network: u8, address: SocketAddr) -> Peer {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, network, 1], 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        Peer::new(socket.into())
    }

    /// The end of a connection that was made already.
    pub fn new(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Peer { stream, unread: Vec::new() }
    }

    /// The stream below.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends bytes, if the other end still takes them.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        let request = request.as_ref();
        self.send(request);
        if request.starts_with(b"HEAD ") { self.head().expect("an answer") } else { self.answer() }
    }

    /// Ends the sending direction.
    pub fn end_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes the connection so that the other end gets a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// A message's head; nothing at the end of the connection.
    #[track_caller]
    pub fn head(&mut self) -> Option<Message> {
        let end = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if self.fill() == 0 {
                let rest = String::from_utf8_lossy(&self.unread);
                assert!(self.unread.is_empty(), "the connection ended within a head: {rest}");
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        Some(Message { line, fields: lines.map(field).collect(), ..Message::default() })
    }

    /// A message's head; nothing when the connection ends before it is whole.
    pub fn head_or_end(&mut self) -> Option<Message> {
        while find(&self.unread, b"\r\n\r\n").is_none() {
            if self.fill() == 0 {
                return None;
            }
        }
        self.head()
    }

    /// Reads the body of an answer as far as it comes. Returns whether it came whole; one until the end is whole by that.
    pub fn body_or_end(&mut self, message: &mut Message) -> bool {
        if message.field("transfer-encoding").is_some() {
            while find(&self.unread, b"0\r\n\r\n").is_none() {
                if self.fill() == 0 {
                    return false;
                }
            }
            self.chunks(message);
            return true;
        }
        match message.field("content-length").map(|length| length.parse().unwrap()) {
            Some(length) => self.exactly_or_end(length).map(|body| message.body = body).is_some(),
            None => {
                message.body = self.rest();
                true
            }
        }
    }

    /// The same of a request, which without framing has none.
    pub fn body_of_request_or_end(&mut self, message: &mut Message) -> bool {
        let is_framed =
            ["content-length", "transfer-encoding"].iter().any(|name| message.field(name).is_some());
        !is_framed || self.body_or_end(message)
    }

    /// An answer to anything but a HEAD, with its body.
    #[track_caller]
    pub fn answer(&mut self) -> Message {
        let mut message = self.head().expect("an answer, not the connection's end");
        let status = message.status();
        if (200..).contains(&status) && status != 204 && status != 304 {
            self.body(&mut message, true);
        }
        message
    }

    /// A request with its body; nothing at the end of the connection.
    pub fn request(&mut self) -> Option<Message> {
        let mut message = self.head()?;
        self.body(&mut message, false);
        Some(message)
    }

    /// Reads the body of `message`. What has no framing of its own is empty, or with `until_end` all that comes.
    #[track_caller]
    pub fn body(&mut self, message: &mut Message, until_end: bool) {
        if message.field("transfer-encoding").is_some() {
            assert_eq!(message.field("content-length"), None, "ambiguous: {message:?}");
            return self.chunks(message);
        }
        match message.field("content-length").map(|length| length.parse().unwrap()) {
            Some(length) => message.body = self.exactly(length),
            None if until_end => message.body = self.rest(),
            None => {}
        }
    }

    #[track_caller]
    fn chunks(&mut self, message: &mut Message) {
        loop {
            let size = self.line();
            let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("chunk size {size:?}"));
            if size == 0 {
                break;
            }
            message.body.extend(self.exactly(size));
            assert_eq!(self.line(), "");
        }
        loop {
            match self.line() {
                line if line.is_empty() => return,
                line => message.trailers.push(field(&line)),
            }
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                return line;
            }
            assert!(self.fill() > 0, "the connection ended within a line");
        }
    }

    /// The answer that has come already, if one has.
    pub fn arrived(&mut self) -> Option<Message> {
        self.has_arrived().then(|| self.answer())
    }

    /// Whether something has come already.
    pub fn has_arrived(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let came = self.stream.peek(&mut [0]).is_ok_and(|count| count > 0);
        self.stream.set_nonblocking(false).unwrap();
        came
    }

    /// Exactly `length` bytes.
    #[track_caller]
    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length {
            let missing = length - self.unread.len();
            assert!(self.fill() > 0, "the connection ended {missing} bytes too early");
        }
        self.unread.drain(..length).collect()
    }

    /// Exactly `length` bytes; nothing when the connection ends before.
    pub fn exactly_or_end(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.unread.len() < length {
            if self.fill() == 0 {
                return None;
            }
        }
        Some(self.unread.drain(..length).collect())
    }

    /// All until the end of the connection, which may be a reset.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() > 0 {}
        std::mem::take(&mut self.unread)
    }

    /// What comes next, however little; empty at the end of the connection.
    pub fn some(&mut self) -> Vec<u8> {
        if self.unread.is_empty() {
            self.fill();
        }
        std::mem::take(&mut self.unread)
    }

    /// Whether the connection ends without another byte.
    #[track_caller]
    pub fn ends(&mut self) -> bool {
        self.rest().is_empty()
    }

    #[track_caller]
    fn fill(&mut self) -> usize {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("nothing came: {error}; so far {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("not a canonical field: {line:?}"));
    (name.to_lowercase(), value.to_owned())
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}
