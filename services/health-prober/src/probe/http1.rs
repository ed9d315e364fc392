//! Probes over HTTP/1.1.

use tidegate_http1::{
    ChunkDecoder, Decoded, Framing, Method, Response, Version, list_contains, parse_response,
};
use tidegate_http1::{write_field, write_request_line};
use tidegate_model::observation::Failure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    error::ExchangeError,
    response::{BODY_LIMIT, ProbeResponse},
    stream::{Io, Stream},
};

/// The largest head that is read.
const HEAD_LIMIT: usize = 64 * 1024;
/// The size that a usual response fits in.
const FIRST_READ: usize = 2048;

/// Sends a GET for `path`. Returns the response, and the connection if it can be reused.
pub(super) async fn get(
    mut stream: Stream,
    path: &str,
    host: &str,
    needs_body: bool,
) -> Result<(ProbeResponse, Option<Stream>), ExchangeError> {
    let mut request = Vec::with_capacity(256);
    write_request_line(&mut request, "GET", path);
    write_field(&mut request, b"host", host.as_bytes());
    write_field(&mut request, b"user-agent", b"tidegate-health-prober");
    write_field(&mut request, b"accept", b"*/*");
    request.extend_from_slice(b"\r\n");
    let io = stream.io();
    io.write_all(&request).await.map_err(|_| ExchangeError::NoResponse)?;
    let mut reader = Reader { io, buffer: Vec::with_capacity(FIRST_READ), ended: false };

    let mut response = Response::default();
    let framing = loop {
        let parsed = parse_response(&reader.buffer, HEAD_LIMIT, &Method::Get, &mut response)
            .map_err(|_| ExchangeError::Failed(Failure::BadResponse))?;
        match parsed {
            // An interim response, such as 103: the final one follows. 101 was not requested.
            Some((length, _)) if (100..200).contains(&response.status) && response.status != 101 => {
                reader.consume(length);
            }
            Some((length, framing)) => {
                reader.consume(length);
                break framing;
            }
            None => reader.read_more().await?,
        }
        if reader.ended {
            return Err(ExchangeError::Failed(Failure::Reset));
        }
    };
    let (body, whole) = reader.read_body(framing).await?;
    let leftover = !reader.buffer.is_empty() || reader.ended;
    let closes = response.version == Version::Http10
        || response.fields.get_all(b"connection").any(|list| list_contains(list, b"close"));
    let reusable = whole && !leftover && !closes && framing != Framing::UntilClose && response.status != 101;
    let body = if needs_body { body } else { Vec::new() };
    Ok((ProbeResponse::Http { status: response.status, body }, reusable.then_some(stream)))
}

struct Reader<'s> {
    io: &'s mut dyn Io,
    /// Bytes that were read and not consumed yet.
    buffer: Vec<u8>,
    ended: bool,
}

impl Reader<'_> {
    /// Reads more into the buffer, or records the end. An end before the first byte means that there is no response.
    async fn read_more(&mut self) -> Result<(), ExchangeError> {
        let first = self.buffer.is_empty();
        self.buffer.reserve(FIRST_READ);
        match self.io.read_buf(&mut self.buffer).await {
            Ok(0) if first => Err(ExchangeError::NoResponse),
            Ok(0) => {
                self.ended = true;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(_) if first => Err(ExchangeError::NoResponse),
            Err(_) => Err(ExchangeError::Failed(Failure::Reset)),
        }
    }

    fn consume(&mut self, length: usize) {
        self.buffer.drain(..length);
    }

    /// Reads the start of the body, up to the limit. Returns it, and whether it is complete.
    async fn read_body(&mut self, framing: Framing) -> Result<(Vec<u8>, bool), ExchangeError> {
        match framing {
            Framing::Empty => Ok((Vec::new(), true)),
            Framing::Length(length) => {
                let whole = usize::try_from(length).ok().filter(|length| *length <= BODY_LIMIT);
                let wanted = whole.unwrap_or(BODY_LIMIT);
                while self.buffer.len() < wanted {
                    self.read_more_body().await?;
                    if self.ended {
                        return Err(ExchangeError::Failed(Failure::Reset));
                    }
                }
                let body = self.buffer[..wanted].to_vec();
                self.consume(wanted);
                Ok((body, whole.is_some()))
            }
            Framing::UntilClose => {
                while !self.ended && self.buffer.len() < BODY_LIMIT {
                    self.read_more_body().await?;
                }
                Ok((std::mem::take(&mut self.buffer), self.ended))
            }
            Framing::Chunked => self.read_chunks().await,
        }
    }

    async fn read_chunks(&mut self) -> Result<(Vec<u8>, bool), ExchangeError> {
        let mut decoder = ChunkDecoder::default();
        let mut body = Vec::new();
        loop {
            match decoder.decode(&self.buffer).map_err(|_| ExchangeError::Failed(Failure::BadResponse))? {
                Decoded::Data { range } => {
                    body.extend_from_slice(&self.buffer[range.clone()]);
                    self.consume(range.end);
                    if body.len() >= BODY_LIMIT {
                        body.truncate(BODY_LIMIT);
                        return Ok((body, false));
                    }
                }
                Decoded::End { consumed } => {
                    self.consume(consumed);
                    return Ok((body, true));
                }
                Decoded::NeedMore { consumed } => {
                    self.consume(consumed);
                    self.read_more_body().await?;
                    if self.ended {
                        return Err(ExchangeError::Failed(Failure::Reset));
                    }
                }
            }
        }
    }

    /// Reads more within a body, where an end never means that there is no response.
    async fn read_more_body(&mut self) -> Result<(), ExchangeError> {
        self.buffer.reserve(FIRST_READ);
        match self.io.read_buf(&mut self.buffer).await {
            Ok(count) => {
                self.ended = count == 0;
                Ok(())
            }
            Err(_) => Err(ExchangeError::Failed(Failure::Reset)),
        }
    }
}
