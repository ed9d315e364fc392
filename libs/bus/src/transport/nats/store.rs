//! A key-value bucket in JetStream.
//!
//! It uses no watchers: each is a consumer on the server, and so is `Store::keys`. Keys are listed from the stream's
//! subjects instead.

use std::sync::Arc;

use async_nats::jetstream::{
    self, ErrorCode,
    context::{GetStreamError, GetStreamErrorKind, KeyValueError},
    kv::{CreateErrorKind, Operation, Store, UpdateErrorKind},
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::sync::Mutex;

use super::{BUCKET_LIMIT, NatsBus};
use crate::{
    BusError,
    bucket::{Entry, Expected, Stamp},
};

/// A bucket. Writers create it when it is missing; readers need no permission to.
#[derive(Debug)]
pub(crate) struct NatsStore {
    bus: Arc<NatsBus>,
    name: String,
    /// The bucket as it was last looked up. Held over an await on purpose: of many concurrent calls one looks it up.
    found: Mutex<Option<Found>>,
}

#[derive(Debug, Clone)]
struct Found {
    store: Store,
    /// Whether its replicas were raised to what this process is configured for.
    is_replicated: bool,
}

/// What a call expects of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// It may be missing.
    Present,
    /// It is created when it is missing.
    Ensured,
}

/// Why one attempt of a call failed.
enum Failure {
    /// The precondition does not hold.
    Conflict,
    /// Anything else, such as a missing bucket.
    Other(String),
}

impl NatsStore {
    pub(crate) fn new(bus: Arc<NatsBus>, name: &str) -> NatsStore {
        NatsStore { bus, name: name.to_owned(), found: Mutex::new(None) }
    }

    pub(crate) async fn ensure(&self) -> Result<(), BusError> {
        self.bus.check_connected()?;
        let found = async { self.find(Access::Ensured).await.map(drop) };
        self.bus.within(BUCKET_LIMIT, || format!("creating the bucket {}", self.name), found).await
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>, BusError> {
        let found = self.call(Access::Present, "get", key, |store: Store| async move {
            let entry = store.entry(key).await.map_err(|error| Failure::Other(full(&error)))?;
            Ok(entry
                .filter(|entry| entry.operation == Operation::Put)
                .map(|entry| Entry { revision: entry.revision, value: entry.value }))
        });
        Ok(found.await?.flatten())
    }

    pub(crate) async fn write(&self, key: &str, value: Bytes, expected: Expected) -> Result<u64, BusError> {
        let limit = self.bus.max_payload();
        if value.len() > limit {
            let subject = format!("$KV.{}.{key}", self.name);
            return Err(BusError::TooLarge { subject, size: value.len(), limit });
        }
        let value = &value;
        let written = self.call(Access::Ensured, "write", key, |store: Store| async move {
            let value = value.clone();
            match expected {
                Expected::Any => store.put(key, value).await.map_err(|error| Failure::Other(full(&error))),
                Expected::Nothing => store.create(key, value).await.map_err(|error| match error.kind() {
                    CreateErrorKind::AlreadyExists => Failure::Conflict,
                    _ => Failure::Other(full(&error)),
                }),
                Expected::Revision(revision) => {
                    store.update(key, value, revision).await.map_err(|error| match error.kind() {
                        UpdateErrorKind::WrongLastRevision => Failure::Conflict,
                        _ => Failure::Other(full(&error)),
                    })
                }
            }
        });
        written.await?.ok_or_else(|| BusError::Bucket {
            bucket: self.name.clone(),
            operation: "write",
            reason: "it is missing".to_owned(),
        })
    }

    /// Deletes an entry; where `expected` is given, only at that revision.
    pub(crate) async fn delete(&self, key: &str, expected: Option<u64>) -> Result<(), BusError> {
        let deleted = self.call(Access::Present, "delete", key, |store: Store| async move {
            store.purge_expect_revision(key, expected).await.map_err(|error| Failure::Other(full(&error)))
        });
        deleted.await.map(Option::unwrap_or_default)
    }

    /// Purges every key `<prefix>.…`.
    pub(crate) async fn delete_below(&self, prefix: &str) -> Result<(), BusError> {
        let deleted = self.call(Access::Present, "delete", prefix, |store: Store| async move {
            let filter = format!("{}{prefix}.>", store.prefix);
            store.stream.purge().filter(filter).await.map_err(|error| Failure::Other(full(&error)))?;
            Ok(())
        });
        deleted.await.map(Option::unwrap_or_default)
    }

    /// The keys `<prefix>.…`, or all; deleted ones are among them.
    pub(crate) async fn keys(&self, prefix: Option<&str>) -> Result<Vec<String>, BusError> {
        let keys = self.call(Access::Present, "list", prefix.unwrap_or(">"), |store: Store| async move {
            let filter = match prefix {
                Some(prefix) => format!("{}{prefix}.>", store.prefix),
                None => format!("{}>", store.prefix),
            };
            let listed = async {
                let subjects = store.stream.info_with_subjects(filter).await?;
                subjects.try_collect::<Vec<_>>().await
            };
            let subjects = listed.await.map_err(|error| Failure::Other(full(&error)))?;
            let key = |(subject, _): (String, usize)| subject.strip_prefix(&store.prefix).map(str::to_owned);
            let mut keys: Vec<String> = subjects.into_iter().filter_map(key).collect();
            keys.sort_unstable();
            Ok(keys)
        });
        keys.await.map(Option::unwrap_or_default)
    }

    pub(crate) async fn stamp(&self) -> Result<Stamp, BusError> {
        let stamp = self.call(Access::Present, "read", "the stamp", |store: Store| async move {
            let info = store.stream.get_info().await.map_err(|error| Failure::Other(full(&error)))?;
            let created = u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default();
            Ok(Stamp { created, last_revision: info.state.last_sequence })
        });
        stamp.await.map(Option::unwrap_or_default)
    }

    /// Attempts a call; when it fails for any reason but a conflict, looks the bucket up again and retries once. Nothing when
    /// there is no bucket.
    async fn call<T, Attempt: Future<Output = Result<T, Failure>>>(
        &self,
        access: Access,
        operation: &'static str,
        key: &str,
        attempt: impl Fn(Store) -> Attempt,
    ) -> Result<Option<T>, BusError> {
        self.bus.check_connected()?;
        let conflict = || BusError::Conflict { bucket: self.name.clone(), key: key.to_owned() };
        let called = async {
            if let Some(store) = self.cached(access).await {
                match attempt(store).await {
                    Ok(value) => return Ok(Some(value)),
                    Err(Failure::Conflict) => return Err(conflict()),
                    Err(Failure::Other(_)) => {}
                }
            }
            let Some(store) = self.find(access).await? else { return Ok(None) };
            attempt(store).await.map(Some).map_err(|failure| match failure {
                Failure::Conflict => conflict(),
                Failure::Other(reason) => BusError::Bucket { bucket: self.name.clone(), operation, reason },
            })
        };
        let what = || format!("{operation} of {key} in bucket {}", self.name);
        self.bus.within(BUCKET_LIMIT, what, called).await
    }

    async fn cached(&self, access: Access) -> Option<Store> {
        let found = self.found.lock().await;
        found
            .as_ref()
            .filter(|found| found.is_replicated || access == Access::Present)
            .map(|found| found.store.clone())
    }

    async fn find(&self, access: Access) -> Result<Option<Store>, BusError> {
        let mut found = self.found.lock().await;
        *found = None;
        let context = &self.bus.jetstream;
        let failed = |operation, error: &dyn std::error::Error| BusError::Bucket {
            bucket: self.name.clone(),
            operation,
            reason: full(error),
        };
        let store = match (context.get_key_value(&self.name).await, access) {
            (Ok(store), Access::Present) => store,
            (Ok(store), Access::Ensured) => {
                raise_replicas(&self.bus, &store.stream.cached_info().config).await;
                store
            }
            (Err(error), Access::Present) if is_missing(&error) => return Ok(None),
            (Err(error), Access::Present) => return Err(failed("lookup", &error)),
            (Err(_), Access::Ensured) => context
                .create_key_value(jetstream::kv::Config {
                    bucket: self.name.clone(),
                    history: 1,
                    storage: jetstream::stream::StorageType::File,
                    num_replicas: self.bus.bucket_replicas,
                    ..Default::default()
                })
                .await
                .map_err(|error| failed("creation", &error))?,
        };
        *found = Some(Found { store: store.clone(), is_replicated: access == Access::Ensured });
        Ok(Some(store))
    }
}

/// Whether the server says that there is no such bucket.
fn is_missing(error: &KeyValueError) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<GetStreamError>());
    matches!(
        cause.map(GetStreamError::kind),
        Some(GetStreamErrorKind::JetStream(error)) if error.error_code() == ErrorCode::STREAM_NOT_FOUND
    )
}

/// The text of an error with its causes, which this client's errors omit, and with a hint where one is known.
pub(super) fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    // The last is the client's text where nobody responds for JetStream.
    let without =
        ["JetStream not enabled", "JetStream unavailable", "requested JetStream resource does not exist"];
    if without.iter().any(|words| text.contains(words)) {
        return format!("JetStream is off on the NATS server, and needed (nats-server --jetstream): {text}");
    }
    text
}

/// Raises the replicas of a stream to what this process is configured for. A failure is logged and changes nothing.
pub(super) async fn raise_replicas(bus: &NatsBus, config: &jetstream::stream::Config) {
    if config.num_replicas >= bus.bucket_replicas {
        return;
    }
    let wanted = jetstream::stream::Config { num_replicas: bus.bucket_replicas, ..config.clone() };
    match bus.jetstream.update_stream(&wanted).await {
        Ok(_) => {
            tracing::info!(
                stream = wanted.name,
                replicas = wanted.num_replicas,
                "the stream has more replicas"
            );
        }
        Err(error) => {
            tracing::warn!(
                stream = wanted.name,
                error = full(&error),
                "the stream cannot have more replicas"
            );
        }
    }
}
