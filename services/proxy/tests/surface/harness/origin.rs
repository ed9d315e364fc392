//! Origins that do exactly what a test tells them, right or wrong.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::peer::{Message, Peer};

/// A scripted origin: each connection runs the script in a thread of its own.
pub struct Origin {
    address: SocketAddr,
    seen: Seen,
}

/// What origins were asked. Clones share it.
#[derive(Clone, Default)]
pub struct Seen {
    requests: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
}

impl Seen {
    /// Notes a request.
    pub fn note(&self, request: &Message) {
        self.requests.lock().unwrap().push(request.clone());
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Message> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests so far.
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// How many connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Notes a connection and returns its number, from 0.
    pub fn connected(&self) -> usize {
        self.connections.fetch_add(1, Ordering::SeqCst)
    }
}

impl Origin {
    /// An origin whose connections run `script`, which is given the connection, what was seen so far, and the
    /// connection's number, from 0.
    pub fn scripted(script: impl Fn(Peer, &Seen, usize) + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Seen::default();
        let script = Arc::new(script);
        std::thread::spawn({
            let seen = seen.clone();
            move || {
                for stream in listener.incoming() {
                    let (peer, seen, script) = (Peer::new(stream.unwrap()), seen.clone(), script.clone());
                    let number = seen.connected();
                    std::thread::spawn(move || script(peer, &seen, number));
                }
            }
        });
        Origin { address, seen }
    }

    /// An origin that gives what `answer` makes of each request, with keep-alive.
    pub fn answering(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Origin {
        Origin::scripted(move |mut peer, seen, _| {
            while let Some(request) = peer.request() {
                seen.note(&request);
                if peer.try_send(answer(&request)).is_err() {
                    return;
                }
            }
        })
    }

    /// An origin that answers everything with 200 and `name`.
    pub fn named(name: &'static str) -> Origin {
        Origin::answering(move |request| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", name.len());
            if request.line.starts_with("HEAD ") { head.into() } else { format!("{head}{name}").into() }
        })
    }

    /// An address where nobody listens.
    pub fn refusing() -> SocketAddr {
        // The port was free a moment ago, and the kernel gives ports out in turn: nobody takes it so soon.
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }
}
