//! The names of settings, taken from the defaults, and their spellings.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};
use serde::{Serialize, de::DeserializeOwned};

/// All settings by name (`nats.servers`), with the text of the default.
pub(super) struct Keys(BTreeMap<String, Option<String>>);

impl Keys {
    pub fn of<S: Serialize>(defaults: &S) -> Keys {
        let mut keys = BTreeMap::new();
        flatten("", serde_json::to_value(defaults).unwrap_or_default(), &mut keys);
        Keys(keys)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Option<String>)> {
        self.0.iter()
    }

    /// Whether this is a setting, or within one that is a user-defined table.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
            || self.0.keys().any(|known| key.strip_prefix(known).is_some_and(|rest| rest.starts_with('.')))
    }

    /// The setting with the most similar name, if one is similar enough.
    pub fn nearest(&self, key: &str) -> Option<&str> {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let distance = |known: &str| {
            let whole = strsim::damerau_levenshtein(known, key);
            // The right name in the wrong section is similar, too.
            if last(known) == last(key) { whole.min(2) } else { whole }
        };
        let nearest = self.0.keys().min_by_key(|known| distance(known))?;
        (distance(nearest) <= 3).then_some(nearest)
    }
}

impl Keys {
    /// The flag that is most similar to `given`, if one is similar enough: few letters differ, or the words of one are words
    /// of the other (`--servers` and `--nats-servers`).
    pub fn nearest_flag(&self, given: &str) -> Option<String> {
        let words = |flag: &str| flag.split('-').map(str::to_owned).collect::<Vec<_>>();
        let given_words = words(given);
        let distance = |known: &str| {
            let known_words = words(known);
            let is_part = |part: &[String], whole: &[String]| part.iter().all(|word| whole.contains(word));
            match strsim::damerau_levenshtein(known, given) {
                _ if is_part(&given_words, &known_words) || is_part(&known_words, &given_words) => 1,
                distance => distance,
            }
        };
        let flags = self.0.keys().map(|key| flag(key));
        let nearest =
            flags.min_by_key(|known| (distance(known), strsim::damerau_levenshtein(known, given)))?;
        (distance(&nearest) <= 3).then_some(nearest)
    }
}

/// The possible values of a setting that is an enumeration; empty for other settings. They are taken from the error of
/// deserializing the defaults with an invalid value in its place.
pub(super) fn choices<S: Serialize + DeserializeOwned>(defaults: &S, key: &str) -> Vec<String> {
    let refused = || {
        let mut settings = serde_json::to_value(defaults).ok()?;
        *settings.pointer_mut(&format!("/{}", key.replace('.', "/")))? = "?".into();
        Some(serde_json::from_value::<S>(settings).err()?.to_string())
    };
    let said = refused().unwrap_or_default();
    let expected = said.strip_prefix("unknown variant").and_then(|said| said.split_once("expected "));
    expected
        .map(|(_, words)| words.split('`').skip(1).step_by(2).map(str::to_owned).collect())
        .unwrap_or_default()
}

fn flatten(key: &str, value: serde_json::Value, keys: &mut BTreeMap<String, Option<String>>) {
    use serde_json::Value as Json;
    let default = match value {
        Json::Object(fields) if key.is_empty() || !fields.is_empty() => {
            for (name, value) in fields {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(&key, value, keys);
            }
            return;
        }
        Json::Null | Json::Object(_) => None,
        Json::String(text) => Some(text).filter(|text| !text.is_empty()),
        Json::Array(items) => {
            let items: Vec<String> =
                items.into_iter().map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned)).collect();
            Some(items.join(",")).filter(|text| !text.is_empty())
        }
        other => Some(other.to_string()),
    };
    keys.insert(key.to_owned(), default);
}

/// The names of the values of a source, each with the origin of the value, empty when unknown.
pub(super) fn leaves(collected: Map<String, Value>) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    let mut open: Vec<(String, Value)> = collected.into_iter().collect();
    while let Some((key, value)) = open.pop() {
        let origin = value.origin().unwrap_or_default().to_owned();
        match value.kind {
            ValueKind::Table(fields) if !fields.is_empty() => {
                open.extend(fields.into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            _ => leaves.push((key, origin)),
        }
    }
    leaves.sort_unstable();
    leaves
}

/// The environment's name of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("TIDEGATE_{}", key.replace('.', "__").to_uppercase())
}

/// The flag of a setting, without its dashes.
pub(super) fn flag(key: &str) -> String {
    key.replace(['.', '_'], "-")
}
