//! Signatures of tables and leases, so that a stolen credential of the bus can't forge them.
//!
//! A sealed body is the body with a signature before it: [`MAGIC`], the first bytes of the signer's public key, the
//! Ed25519 signature (RFC 8032), the body. The signature covers a label for the purpose, the
//! subject or key, and the body: a delta can't pass as a snapshot, nor a message of one region as one of another. The time is not
//! signed: a replayed message has an old position and changes no table. But replaying a dead owner's last heartbeat hides its
//! death.
//!
//! [`Trust`] verifies the seals of received messages. Without keys it accepts everything, sealed or not: a fleet without signing
//! keys relies on the bus's permissions alone.

use std::{
    fmt, fs, io,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey};
use bytes::{BufMut, Bytes, BytesMut};
use tidegate_model::{SigningPublicKey, Timestamp, key::from_hex};
use tokio::sync::{Notify, watch};

use crate::clock;

/// The start of a sealed body: never a schema version of [`codec`](crate::codec).
const MAGIC: [u8; 2] = [0xff, 0xff];
const ID_LENGTH: usize = 8;
const SIGNATURE_LENGTH: usize = 64;
const SEAL_LENGTH: usize = MAGIC.len() + ID_LENGTH + SIGNATURE_LENGTH;

/// The purpose of a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A delta or heartbeat of a table.
    Message,
    /// A snapshot of a table.
    Snapshot,
    /// A lease.
    Lease,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Message => b"tidegate table message v1\0",
            Purpose::Snapshot => b"tidegate table snapshot v1\0",
            Purpose::Lease => b"tidegate lease v1\0",
        }
    }
}

/// A private key that seals messages.
pub struct Signer {
    pair: Ed25519KeyPair,
}

/// Why a private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Other users of this machine can read the file.
    #[error("{path} can be read by other users (mode {mode:03o}): chmod 600 it")]
    Exposed {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// The file holds no Ed25519 private key.
    #[error("{path} holds no Ed25519 private key: `tidegate signing-key --out FILE` makes one")]
    NoKey {
        /// The file.
        path: String,
    },
}

impl Signer {
    /// Reads a private key: PKCS#8, hexadecimal, as [`Signer::create`] writes it.
    ///
    /// # Errors
    /// When the file cannot be read, other users can read it, or it holds no such key.
    pub fn load(path: &Path) -> Result<Signer, SigningKeyError> {
        let shown = || path.display().to_string();
        let file = |source| SigningKeyError::File { path: shown(), source };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
            // A Secret of Kubernetes belongs to root and a group of the pod's own.
            if mode & 0o007 != 0 {
                return Err(SigningKeyError::Exposed { path: shown(), mode });
            }
        }
        let text = fs::read_to_string(path).map_err(file)?;
        let der = from_hex(text.trim()).ok_or_else(|| SigningKeyError::NoKey { path: shown() })?;
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| SigningKeyError::NoKey { path: shown() })?;
        Ok(Signer { pair })
    }

    /// Creates a private key and writes it to a new file that only its owner can read.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: &Path) -> Result<Signer, SigningKeyError> {
        let file = |source| SigningKeyError::File { path: path.display().to_string(), source };
        let pair = Ed25519KeyPair::generate().map_err(|_| file(io::Error::other("no randomness")))?;
        let der = pair.to_pkcs8().map_err(|_| file(io::Error::other("the key cannot be written")))?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut text: String = der.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        text.push('\n');
        io::Write::write_all(&mut options.open(path).map_err(file)?, text.as_bytes()).map_err(file)?;
        Ok(Signer { pair })
    }

    /// A key that is stored nowhere, for tests and measurements.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub fn ephemeral() -> Signer {
        Signer { pair: Ed25519KeyPair::generate().expect("randomness") }
    }

    /// The public key, which verifies the seals.
    pub fn public_key(&self) -> SigningPublicKey {
        let mut key = [0; tidegate_model::PUBLIC_KEY_LENGTH];
        key.copy_from_slice(self.pair.public_key().as_ref());
        SigningPublicKey(key)
    }

    /// Seals a body.
    pub fn seal(&self, purpose: Purpose, subject: &str, body: &[u8]) -> Bytes {
        let signature = self.pair.sign(&signed(purpose, subject, body));
        let mut sealed = BytesMut::with_capacity(SEAL_LENGTH + body.len());
        sealed.put_slice(&MAGIC);
        sealed.put_slice(&self.public_key().0[..ID_LENGTH]);
        sealed.put_slice(signature.as_ref());
        sealed.put_slice(body);
        sealed.freeze()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.public_key()).finish()
    }
}

/// The bytes that a signature is over.
fn signed(purpose: Purpose, subject: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 + subject.len() + body.len());
    bytes.extend_from_slice(purpose.label());
    bytes.extend_from_slice(&(subject.len() as u64).to_be_bytes());
    bytes.extend_from_slice(subject.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Why a message is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It has no signature.
    #[error("it is not signed")]
    Unsigned,
    /// It was signed with a key that is not trusted.
    #[error("it is signed with a key that the fleet does not name")]
    UnknownKey,
    /// The signature is not one of this key over this message.
    #[error("its signature is wrong")]
    Forged,
    /// The keys are not known yet.
    #[error("it is not known yet whether the fleet names keys")]
    Undecided,
}

/// The trusted keys, as they change. Clones share them.
#[derive(Clone, Default)]
pub struct Trust(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Each with its parsed form. A key that does not parse verifies nothing, but still makes unsigned messages untrusted.
    keys: RwLock<Vec<(SigningPublicKey, Option<ParsedPublicKey>)>>,
    refused: AtomicU64,
    refused_at: AtomicU64,
    /// Notified when a message was refused, or is sealed although no keys are known.
    recheck: Notify,
    /// Whether the keys are not known yet.
    undecided: watch::Sender<bool>,
}

impl Trust {
    /// Trust without keys: everything is trusted.
    pub fn new() -> Trust {
        Trust::default()
    }

    /// Trusts nothing until keys are set ([`Trust::set`]) or there are known to be none ([`Trust::decide`]).
    pub fn undecided() -> Trust {
        let trust = Trust::default();
        trust.0.undecided.send_replace(true);
        trust
    }

    /// Whether nothing is trusted because the keys are not known yet.
    pub fn is_undecided(&self) -> bool {
        *self.0.undecided.borrow()
    }

    /// Ends the wait for keys: from now on messages are trusted that a key has signed, or all where there is no key.
    pub fn decide(&self) {
        self.0.undecided.send_if_modified(std::mem::take);
    }

    /// [`Trust::is_undecided`], as it changes.
    pub(crate) fn watch_undecided(&self) -> watch::Receiver<bool> {
        self.0.undecided.subscribe()
    }

    /// Trusts exactly these keys; without any, everything is trusted.
    pub fn set(&self, keys: &[SigningPublicKey]) {
        let parsed = keys.iter().map(|key| (*key, ParsedPublicKey::new(&ED25519, key.0).ok())).collect();
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = parsed;
        self.decide();
    }

    /// The trusted keys.
    pub fn keys(&self) -> Vec<SigningPublicKey> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).iter().map(|(key, _)| *key).collect()
    }

    /// Whether there are keys, so that only signed messages are trusted.
    pub fn has_keys(&self) -> bool {
        !self.0.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Verifies a sealed body. Returns the body without the seal.
    ///
    /// # Errors
    /// Why it is not trusted; the refusal is counted.
    pub fn open(&self, purpose: Purpose, subject: &str, sealed: &Bytes) -> Result<Bytes, SealError> {
        if self.is_undecided() {
            return Err(SealError::Undecided);
        }
        let opened = self.check(purpose, subject, sealed);
        if opened.is_err() {
            self.0.refused.fetch_add(1, Relaxed);
            self.0.refused_at.store(clock::now().0, Relaxed);
            self.0.recheck.notify_one();
        }
        opened
    }

    /// The number of refusals.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }

    /// The time of the last refusal.
    pub fn refused_at(&self) -> Option<Timestamp> {
        match self.0.refused_at.load(Relaxed) {
            0 => None,
            at => Some(Timestamp(at)),
        }
    }

    /// Waits until the keys may have changed: a message was refused, or is sealed although no keys are known.
    pub async fn recheck_needed(&self) {
        self.0.recheck.notified().await;
    }

    fn check(&self, purpose: Purpose, subject: &str, sealed: &Bytes) -> Result<Bytes, SealError> {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some((id, signature)) = parts(sealed) else {
            return if keys.is_empty() { Ok(sealed.clone()) } else { Err(SealError::Unsigned) };
        };
        let body = sealed.slice(SEAL_LENGTH..);
        if keys.is_empty() {
            self.0.recheck.notify_one();
            return Ok(body);
        }
        let mut known = keys.iter().filter(|(key, _)| key.0.starts_with(id)).peekable();
        known.peek().ok_or(SealError::UnknownKey)?;
        let message = signed(purpose, subject, &body);
        let mut keys = known.filter_map(|(_, key)| key.as_ref());
        if keys.any(|key| key.verify_sig(&message, signature).is_ok()) {
            Ok(body)
        } else {
            Err(SealError::Forged)
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trust").field(&self.keys()).finish()
    }
}

/// The body without its seal, if it has one; does not verify it.
pub(crate) fn body(sealed: &[u8]) -> &[u8] {
    if parts(sealed).is_some() { &sealed[SEAL_LENGTH..] } else { sealed }
}

/// The key's id and the signature of a sealed body.
fn parts(sealed: &[u8]) -> Option<(&[u8], &[u8])> {
    let seal = sealed.get(..SEAL_LENGTH)?.strip_prefix(&MAGIC)?;
    Some(seal.split_at(ID_LENGTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(trust: &Trust, subject: &str, sealed: &Bytes) -> Result<Bytes, SealError> {
        trust.open(Purpose::Message, subject, sealed)
    }

    #[test]
    fn only_what_a_trusted_key_signed_for_this_subject_and_purpose_is_trusted() {
        let (signer, other) = (Signer::ephemeral(), Signer::ephemeral());
        let (trust, body) = (Trust::new(), Bytes::from("body"));
        trust.set(&[signer.public_key()]);
        let sealed = signer.seal(Purpose::Message, "routes.us", &body);

        assert_eq!(open(&trust, "routes.us", &sealed), Ok(body.clone()));
        assert_eq!(open(&trust, "routes.eu", &sealed), Err(SealError::Forged));
        assert_eq!(trust.open(Purpose::Snapshot, "routes.us", &sealed), Err(SealError::Forged));
        assert_eq!(open(&trust, "routes.us", &body), Err(SealError::Unsigned));
        let stranger = other.seal(Purpose::Message, "routes.us", &body);
        assert_eq!(open(&trust, "routes.us", &stranger), Err(SealError::UnknownKey));
        for at in 0..sealed.len() {
            let mut tampered = sealed.to_vec();
            tampered[at] ^= 1;
            assert!(open(&trust, "routes.us", &tampered.into()).is_err(), "byte {at}");
        }
        assert!(trust.refused() > 4 && trust.refused_at().is_some());
    }

    #[test]
    fn without_keys_everything_is_taken_and_with_several_any_of_them_counts() {
        let (old, new) = (Signer::ephemeral(), Signer::ephemeral());
        let (trust, body) = (Trust::new(), Bytes::from("body"));
        let by = |signer: &Signer| signer.seal(Purpose::Message, "t", &body);
        assert_eq!(open(&trust, "t", &body), Ok(body.clone()));
        assert_eq!(open(&trust, "t", &by(&old)), Ok(body.clone()));

        trust.set(&[old.public_key(), new.public_key()]);
        assert!(open(&trust, "t", &by(&old)).is_ok() && open(&trust, "t", &by(&new)).is_ok());

        trust.set(&[new.public_key()]);
        assert!(open(&trust, "t", &by(&old)).is_err() && open(&trust, "t", &by(&new)).is_ok());
    }

    #[test]
    fn until_it_is_known_whether_there_are_keys_nothing_is_taken_and_nothing_counted() {
        let (signer, body) = (Signer::ephemeral(), Bytes::from("body"));
        let sealed = signer.seal(Purpose::Message, "t", &body);
        let (trust, other) = (Trust::undecided(), Trust::undecided());
        assert_eq!(open(&trust, "t", &body), Err(SealError::Undecided));
        assert_eq!(open(&trust, "t", &sealed), Err(SealError::Undecided));
        assert_eq!((trust.refused(), trust.is_undecided()), (0, true));

        trust.set(&[signer.public_key()]);
        assert!(open(&trust, "t", &sealed).is_ok() && open(&trust, "t", &body).is_err());
        other.decide();
        assert!(open(&other, "t", &body).is_ok());
    }

    #[test]
    fn keys_that_are_no_points_of_the_curve_do_not_let_in_what_is_unsigned() {
        let body = Bytes::from("body");
        for byte in 0..=u8::MAX {
            let trust = Trust::new();
            let key = SigningPublicKey([byte; 32]);
            trust.set(&[key]);
            assert_eq!(trust.keys(), [key]);
            assert_eq!(open(&trust, "t", &body), Err(SealError::Unsigned), "{key}");
        }
    }

    #[test]
    fn a_private_key_is_its_owners_alone() {
        let path = std::env::temp_dir().join(format!("tidegate-key-{}", std::process::id()));
        _ = fs::remove_file(&path);
        let signer = Signer::create(&path).unwrap();
        assert_eq!(Signer::load(&path).unwrap().public_key(), signer.public_key());
        assert!(matches!(Signer::create(&path), Err(SigningKeyError::File { .. })), "it is not overwritten");

        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(Signer::load(&path), Err(SigningKeyError::Exposed { mode: 0o644, .. })));
        fs::remove_file(&path).unwrap();
    }
}
