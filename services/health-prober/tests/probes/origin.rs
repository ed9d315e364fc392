//! Origins of all kinds.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_model::fleet::Address;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What an origin does with a connection.
#[derive(Clone)]
enum Does {
    /// Sends these responses to one request after the other, then closes.
    Answers(Vec<String>),
    /// Accepts and sends nothing.
    Nothing,
    /// HTTP/2, with a gRPC health service beside.
    Http2,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    closed: usize,
    requests: Vec<String>,
}

pub(crate) struct Origin {
    address: SocketAddr,
    seen: watch::Sender<Seen>,
    task: JoinHandle<()>,
    /// Connections that fill a listener.
    _waiting: Vec<TcpStream>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    pub(crate) async fn raw(answers: &[&str]) -> Origin {
        Origin::serve(Does::Answers(answers.iter().map(|answer| (*answer).to_owned()).collect())).await
    }

    /// Responds to one request on each connection, and closes it without notice.
    pub(crate) async fn closing() -> Origin {
        Origin::raw(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await
    }

    pub(crate) async fn silent() -> Origin {
        Origin::serve(Does::Nothing).await
    }

    pub(crate) async fn http2() -> Origin {
        Origin::serve(Does::Http2).await
    }

    /// An address without a listener.
    pub(crate) async fn gone() -> Origin {
        let mut origin = Origin::silent().await;
        origin.task.abort();
        assert!((&mut origin.task).await.is_err_and(|error| error.is_cancelled()));
        origin
    }

    /// Listens with a queue that is full.
    pub(crate) async fn full() -> Origin {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 100, "the queue never fills");
        }
        let task = tokio::spawn(async move {
            let _never_accepting = listener;
            std::future::pending::<()>().await;
        });
        Origin { address, seen: watch::Sender::default(), task, _waiting: waiting }
    }

    async fn serve(does: Does) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = watch::Sender::new(Seen::default());
        let task = tokio::spawn({
            let seen = seen.clone();
            async move {
                // Its connections end with it.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    seen.send_modify(|seen| seen.connections += 1);
                    let (does, seen) = (does.clone(), seen.clone());
                    connections.spawn(async move {
                        does.with(stream, &seen).await;
                        seen.send_modify(|seen| seen.closed += 1);
                    });
                }
            }
        });
        Origin { address, seen, task, _waiting: Vec::new() }
    }

    pub(crate) fn address(&self) -> Address {
        Address::Ip(self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.borrow().connections
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.borrow().requests.clone()
    }

    /// Waits until so many connections were closed.
    pub(crate) async fn closed(&self, count: usize) {
        let mut seen = self.seen.subscribe();
        let waiting = seen.wait_for(|seen| seen.closed >= count);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    }

    pub(crate) async fn die(mut self) {
        self.task.abort();
        assert!((&mut self.task).await.is_err_and(|error| error.is_cancelled()));
    }
}

impl Does {
    async fn with(self, stream: TcpStream, seen: &watch::Sender<Seen>) {
        match self {
            Does::Answers(answers) => {
                answer(stream, answers, |head| seen.send_modify(|s| s.requests.push(head))).await;
            }
            Does::Nothing => {
                let _held = stream;
                std::future::pending::<()>().await;
            }
            Does::Http2 => {
                serve_http2(stream, |request| {
                    let line = format!(
                        "{} {} {}",
                        request.method(),
                        request.uri().authority().map_or("", |authority| authority.as_str()),
                        request.uri().path_and_query().map_or("", |path| path.as_str())
                    );
                    seen.send_modify(|seen| seen.requests.push(line));
                })
                .await;
            }
        }
    }
}

/// HTTP/2, with a gRPC health service beside; `requested` sees each request.
pub(crate) async fn serve_http2(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    requested: impl Fn(&Request<Incoming>),
) {
    let service = service_fn(|request: Request<Incoming>| {
        requested(&request);
        respond(request)
    });
    let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    drop(serving.await);
}

/// Sends one response after the head of each request, then closes.
pub(crate) async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: Vec<String>,
    mut requested: impl FnMut(String),
) {
    let mut read = Vec::new();
    for answer in answers {
        let end = loop {
            if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        requested(String::from_utf8_lossy(&read[..end]).into_owned());
        read.drain(..end);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
    drop(stream.shutdown().await);
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn respond(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    if request.uri().path() != "/grpc.health.v1.Health/Check" {
        return Ok(Response::new(Full::from("ok").boxed()));
    }
    let asked =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let named = |name: &str| asked.ends_with(name.as_bytes());
    if named("broken") {
        let mut response = Response::new(Full::default().boxed());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return Ok(response);
    }
    if named("unknown") {
        // NOT_FOUND in the head, as servers send it without a message.
        let mut response = Response::new(Full::default().boxed());
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
        return Ok(response);
    }
    let status = if named("up") { 1 } else { 2 };
    let message = Frame::data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]));
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = futures_util::stream::iter([Ok(message), Ok(Frame::trailers(trailers))]);
    Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))))
}
