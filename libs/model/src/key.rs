//! The public keys of the fleet.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The length of an Ed25519 public key (RFC 8032).
pub const PUBLIC_KEY_LENGTH: usize = 32;
const PREFIX: &str = "ed25519:";

/// An Ed25519 public key that verifies the tables of a region's route-computers. Written as `ed25519:` and 64 hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SigningPublicKey(pub [u8; PUBLIC_KEY_LENGTH]);

/// The error of a text that is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a public key: write `ed25519:` and 64 hexadecimal digits, as `tidegate signing-key` prints them"
)]
pub struct InvalidPublicKey;

impl FromStr for SigningPublicKey {
    type Err = InvalidPublicKey;

    fn from_str(text: &str) -> Result<SigningPublicKey, InvalidPublicKey> {
        let bytes = text.strip_prefix(PREFIX).and_then(from_hex).ok_or(InvalidPublicKey)?;
        bytes.try_into().map(SigningPublicKey).map_err(|_| InvalidPublicKey)
    }
}

/// Decodes hexadecimal digits, two for each byte; nothing when the text is malformed.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| Some(char::from(digit).to_digit(16)? as u8);
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? * 16 + digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

impl TryFrom<String> for SigningPublicKey {
    type Error = InvalidPublicKey;

    fn try_from(text: String) -> Result<SigningPublicKey, InvalidPublicKey> {
        text.parse()
    }
}

impl From<SigningPublicKey> for String {
    fn from(key: SigningPublicKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for SigningPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SigningPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is_one() {
        let key = SigningPublicKey(std::array::from_fn(|index| index as u8 * 7));
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "ed25519:", "ed25519:00", &key.to_string()[1..], &format!("{key}0"), &"é".repeat(36)]
        {
            assert_eq!(text.parse::<SigningPublicKey>(), Err(InvalidPublicKey), "{text}");
        }
    }
}
