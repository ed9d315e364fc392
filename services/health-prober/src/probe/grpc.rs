//! The gRPC health protocol (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>), with
//! its two small messages encoded and decoded here.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::Full;
use tidegate_model::observation::Failure;

use super::{
    error::ExchangeError,
    http2::{Http2, read_body},
    response::ProbeResponse,
};

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Calls `grpc.health.v1.Health/Check` for `service`.
pub(super) async fn check(
    mut http2: Http2,
    scheme: &str,
    service: &str,
    host: &str,
) -> Result<(ProbeResponse, Option<Http2>), ExchangeError> {
    let request = Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "tidegate-health-prober")
        .body(Full::new(encode(service)))
        .map_err(|_| ExchangeError::Failed(Failure::BadResponse))?;
    let response = http2.send(request).await?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(ExchangeError::Failed(Failure::Status(status)));
    }
    let head_has_error = response.headers().get("grpc-status").is_some_and(|status| status != "0");
    let (body, trailers, _) = read_body(response.into_body()).await?;
    let serving = !head_has_error && trailers_are_ok(trailers.as_ref()) && decode(&body) == Some(SERVING);
    Ok((ProbeResponse::Grpc { serving }, http2.into_reusable()))
}

fn trailers_are_ok(trailers: Option<&HeaderMap>) -> bool {
    trailers.and_then(|fields| fields.get("grpc-status")) == Some(&HeaderValue::from_static("0"))
}

/// A frame with `HealthCheckRequest { service }` (field 1, a string; absent when empty).
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// The status in a frame with `HealthCheckResponse { status }` (field 1, an enumeration; absent when 0). Unknown
/// fields are skipped.
fn decode(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || message.len() != length {
        return None;
    }
    let mut rest = message;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = take_varint(&mut rest)?,
            (_, 0) => drop(take_varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_service() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[test]
    fn a_response_has_its_status() {
        assert_eq!(decode(&[0, 0, 0, 0, 2, 0x08, 1]), Some(SERVING));
        assert_eq!(decode(&[0, 0, 0, 0, 2, 0x08, 2]), Some(2));
        assert_eq!(decode(&[0, 0, 0, 0, 0]), Some(0), "unknown");
        let with_more = [0, 0, 0, 0, 6, 0x12, 2, b'x', b'y', 0x08, 1];
        assert_eq!(decode(&with_more), Some(SERVING));
        for broken in [
            &[][..],
            &[0, 0, 0, 0, 2, 8],
            &[0, 0, 0, 0, 1, 8],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 2, 0x12, 9],
        ] {
            assert_eq!(decode(broken), None, "{broken:?}");
        }
    }
}
