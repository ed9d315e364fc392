//! HTTP/2 peers, with and without TLS.

use std::{net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tidegate_tls::{HTTP2, ServerTls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

use super::{origin::Seen, peer::Message};

/// A stream at an HTTP/2 origin.
pub struct Exchange {
    /// The request; its body is still to come.
    pub request: Request<RecvStream>,
    /// Where to answer.
    pub respond: SendResponse<Bytes>,
    /// What this origin was asked so far.
    pub seen: Seen,
}

/// What an HTTP/2 origin does with its connection once a stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    GoOn,
    /// It says `GOAWAY` and processes this stream and no later one.
    GoAway,
}

/// How an HTTP/2 origin serves.
#[derive(Clone)]
pub struct Serving {
    /// TLS, if it has it.
    pub tls: Option<Arc<ServerTls>>,
    /// Streams at once.
    pub streams: u32,
    /// What it does with the connection as a stream comes.
    pub then: Then,
}

impl Default for Serving {
    fn default() -> Serving {
        Serving { tls: None, streams: 100, then: Then::GoOn }
    }
}

/// An HTTP/2 origin in a thread of its own.
pub struct Http2Origin {
    address: SocketAddr,
    seen: Seen,
}

impl Http2Origin {
    /// An origin each of whose streams runs `script`.
    pub fn start<F: Future<Output = ()> + 'static>(
        serving: Serving,
        script: impl Fn(Exchange) -> F + Send + 'static,
    ) -> Http2Origin {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Seen::default();
        std::thread::spawn({
            let seen = seen.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, serve(listener, serving, seen, std::rc::Rc::new(script)));
            }
        });
        Http2Origin { address, seen }
    }

    /// An origin that reads each request whole, notes it, and answers 200 with `name`.
    pub fn named(name: &'static str, serving: Serving) -> Http2Origin {
        Http2Origin::start(serving, move |mut exchange| async move {
            exchange.note().await;
            exchange.answer(200, name);
        })
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

impl Exchange {
    /// Reads the request whole and notes it, as HTTP/1.1 would say it.
    pub async fn note(&mut self) {
        let (body, trailers) = read(self.request.body_mut()).await.unwrap_or_default();
        let head = &self.request;
        let uri = head.uri();
        let mut fields = list(head.headers());
        fields.push(("host".to_owned(), uri.authority().map_or(String::new(), ToString::to_string)));
        self.seen.note(&Message {
            line: format!(
                "{} {} HTTP/2",
                head.method(),
                uri.path_and_query().map_or("", |target| target.as_str())
            ),
            fields,
            body: body.into(),
            trailers,
        });
    }

    /// Answers with `status` and a body.
    pub fn answer(&mut self, status: u16, body: &'static str) {
        let head = Response::builder().status(status).header("content-length", body.len()).body(()).unwrap();
        let is_head = self.request.method() == http::Method::HEAD;
        // Whoever asked may have gone.
        if let Ok(mut stream) = self.respond.send_response(head, is_head || body.is_empty())
            && !is_head
            && !body.is_empty()
        {
            _ = stream.send_data(Bytes::from_static(body.as_bytes()), true);
        }
    }
}

async fn serve<F: Future<Output = ()> + 'static>(
    listener: std::net::TcpListener,
    serving: Serving,
    seen: Seen,
    script: std::rc::Rc<impl Fn(Exchange) -> F + 'static>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (serving, seen, script) = (serving.clone(), seen.clone(), script.clone());
        seen.connected();
        tokio::task::spawn_local(async move {
            match &serving.tls {
                None => connection(stream, &serving, seen, script).await,
                Some(tls) => {
                    let accepting = tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream);
                    // A client that does not trust this origin goes away.
                    if let Ok(stream) = accepting.await {
                        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(HTTP2));
                        connection(stream, &serving, seen, script).await;
                    }
                }
            }
        });
    }
}

async fn connection<F: Future<Output = ()> + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    serving: &Serving,
    seen: Seen,
    script: std::rc::Rc<impl Fn(Exchange) -> F + 'static>,
) {
    let handshake =
        h2::server::Builder::new().max_concurrent_streams(serving.streams).handshake::<_, Bytes>(io);
    let Ok(mut connection) = handshake.await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::task::spawn_local(script(Exchange { request, respond, seen: seen.clone() }));
        if serving.then == Then::GoAway {
            connection.graceful_shutdown();
        }
    }
}

/// An HTTP/2 client without TLS, which knows already what is spoken.
pub async fn client(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        // Its end shows in what is asked on it.
        _ = connection.await;
    });
    send.ready().await.unwrap()
}

/// A GET of `/` on `site.test`, or what `change` makes of it.
pub fn request(method: &str) -> Request<()> {
    Request::builder().method(method).uri("http://site.test/").body(()).unwrap()
}

/// Reads a body to its end, with its trailers.
///
/// # Errors
/// When the stream is reset.
pub async fn read(body: &mut RecvStream) -> Result<(Bytes, Vec<(String, String)>), h2::Error> {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok((all.freeze(), list(&trailers)))
}

fn list(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
