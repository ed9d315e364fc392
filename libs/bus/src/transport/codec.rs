//! The encoding of message bodies: a schema version (two bytes, big endian), then bincode.
//!
//! # Versions
//! [`SCHEMA_VERSION`] is what is written, [`OLDEST_VERSION`] the oldest that is read. To change a type that travels:
//! raise `SCHEMA_VERSION`, keep the type's old shape as a private struct, and read it in the type's
//! [`Wire::read_older`]. The golden files in `tests/golden/v<N>` stay as they are and prove that it works; new ones are
//! written for the new version. A reader refuses what is newer than itself, so during an upgrade readers go first:
//! replicas (edges, route-computers) before owners.
//!
//! # Limits
//! A body is at most [`MAX_BODY`] long. Decoding claims memory in proportion to the body's real length, whatever the
//! lengths inside it say, and never panics.

use bincode::config::{self, Config};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// The schema version that is written.
pub const SCHEMA_VERSION: u16 = 1;
/// The oldest schema version that is read.
pub const OLDEST_VERSION: u16 = 1;
/// The longest body, in bytes.
pub const MAX_BODY: usize = 64 << 20;

/// A type that travels on the bus.
pub trait Wire: Serialize + DeserializeOwned + Send + 'static {
    /// Reads the bincode of an older schema version (at least [`OLDEST_VERSION`]). The default is for types that have
    /// not changed since.
    ///
    /// # Errors
    /// When the bytes are not of that version.
    fn read_older(_version: u16, bincode: &[u8]) -> Result<Self, DecodeError> {
        read_bincode(bincode)
    }
}

/// Why a body could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short to hold a version.
    #[error("a body of {0} bytes holds no schema version")]
    Short(usize),
    /// Longer than [`MAX_BODY`].
    #[error("a body of {0} bytes is longer than {MAX_BODY}")]
    Long(usize),
    /// Of a newer version, or of one that is no longer supported.
    #[error("schema version {0} is not one of {OLDEST_VERSION} to {SCHEMA_VERSION}")]
    Version(u16),
    /// The bincode can't be read as the type.
    #[error("not a {kind}: {reason}")]
    Malformed {
        /// The type.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Bytes were left after the value.
    #[error("{left} bytes left after a {kind}")]
    Trailing {
        /// The type.
        kind: &'static str,
        /// How many.
        left: usize,
    },
}

/// Encodes a value as the body of a message.
///
/// # Panics
/// When `T`'s `Serialize` fails. Derived ones fail only for paths that are not UTF-8, and all of ours come from text.
pub fn encode<T: Wire>(value: &T) -> Bytes {
    let mut body = BytesMut::with_capacity(256);
    body.put_u16(SCHEMA_VERSION);
    write_bincode(value, &mut Writer(&mut body));
    body.freeze()
}

/// Decodes the value in the body of a message.
///
/// # Errors
/// When the body is too short or long, of a version that is not read, or not a `T`.
pub fn decode<T: Wire>(body: &[u8]) -> Result<T, DecodeError> {
    let (version, bincode) = open(body)?;
    decode_part(version, bincode)
}

/// The schema version of a body and the bincode after it.
pub(crate) fn open(body: &[u8]) -> Result<(u16, &[u8]), DecodeError> {
    if body.len() > MAX_BODY {
        return Err(DecodeError::Long(body.len()));
    }
    let (version, bincode) = body.split_first_chunk::<2>().ok_or(DecodeError::Short(body.len()))?;
    let version = u16::from_be_bytes(*version);
    if !(OLDEST_VERSION..=SCHEMA_VERSION).contains(&version) {
        return Err(DecodeError::Version(version));
    }
    Ok((version, bincode))
}

/// A value without a version of its own, inside a body of [`SCHEMA_VERSION`].
pub(crate) fn encode_part<T: Wire>(value: &T) -> Bytes {
    let mut part = BytesMut::new();
    write_bincode(value, &mut Writer(&mut part));
    part.freeze()
}

/// A value that was inside a body of `version`.
pub(crate) fn decode_part<T: Wire>(version: u16, bincode: &[u8]) -> Result<T, DecodeError> {
    if version == SCHEMA_VERSION { read_bincode(bincode) } else { T::read_older(version, bincode) }
}

/// Reads one value that fills `bincode`, for [`Wire::read_older`].
///
/// # Errors
/// When the bytes are not a `T`, or more than one.
pub fn read_bincode<T: DeserializeOwned>(bincode: &[u8]) -> Result<T, DecodeError> {
    // bincode's limit is a constant and counts each number at its full width, at most 16 bytes for one byte of input:
    // so the step above 16 times the length passes every well-formed body, and bounds what a forged length can claim.
    match bincode.len() {
        0..=0x1000 => read_with(bincode, config::standard().with_limit::<{ 64 << 10 }>()),
        0x1001..=0x1_0000 => read_with(bincode, config::standard().with_limit::<{ 1 << 20 }>()),
        0x1_0001..=0x10_0000 => read_with(bincode, config::standard().with_limit::<{ 16 << 20 }>()),
        0x10_0001..=0x100_0000 => read_with(bincode, config::standard().with_limit::<{ 256 << 20 }>()),
        _ => read_with(bincode, config::standard().with_limit::<{ 1 << 30 }>()),
    }
}

fn read_with<T: DeserializeOwned>(bincode: &[u8], config: impl Config) -> Result<T, DecodeError> {
    let kind = std::any::type_name::<T>();
    let (value, read) = bincode::serde::decode_from_slice(bincode, config)
        .map_err(|error| DecodeError::Malformed { kind, reason: error.to_string() })?;
    match bincode.len() - read {
        0 => Ok(value),
        left => Err(DecodeError::Trailing { kind, left }),
    }
}

fn write_bincode<T: Serialize>(value: &T, writer: &mut Writer<'_>) {
    if let Err(error) = bincode::serde::encode_into_writer(value, writer, config::standard()) {
        panic!("a {} cannot be encoded: {error}", std::any::type_name::<T>());
    }
}

struct Writer<'a>(&'a mut BytesMut);

impl bincode::enc::write::Writer for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

// For tests, and for tables of plain values.
impl Wire for String {}
impl Wire for u32 {}
impl Wire for u64 {}

/// Several values in one body; an older version's are read one by one like any other.
impl<T: Wire> Wire for Vec<T> {}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        name: String,
        size: u64,
    }

    /// How `Now` looked in version 0.
    #[derive(Serialize, Deserialize)]
    struct Before {
        name: String,
    }

    impl Wire for Now {
        fn read_older(version: u16, bincode: &[u8]) -> Result<Self, DecodeError> {
            assert_eq!(version, 0);
            read_bincode(bincode).map(|Before { name }| Now { name, size: 7 })
        }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let value = Now { name: "a".repeat(100_000), size: u64::MAX };
        assert_eq!(decode::<Now>(&encode(&value)), Ok(value));
    }

    #[test]
    fn an_older_shape_is_read_into_the_present_one() {
        let mut bincode = BytesMut::new();
        write_bincode(&Before { name: "old".to_owned() }, &mut Writer(&mut bincode));
        assert_eq!(decode_part::<Now>(0, &bincode), Ok(Now { name: "old".to_owned(), size: 7 }));
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        let mut body = BytesMut::from(&encode(&Now { name: String::new(), size: 0 })[..]);
        body[..2].copy_from_slice(&(SCHEMA_VERSION + 1).to_be_bytes());
        assert_eq!(decode::<Now>(&body), Err(DecodeError::Version(SCHEMA_VERSION + 1)));
        assert_eq!(decode::<Now>(&[0]), Err(DecodeError::Short(1)));
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        let mut body = encode(&Now { name: String::new(), size: 0 }).to_vec();
        body.push(0);
        assert!(matches!(decode::<Now>(&body), Err(DecodeError::Trailing { left: 1, .. })));
    }
}
