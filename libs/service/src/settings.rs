//! Settings from defaults, a file, the environment and flags; each overrides the ones before.
//!
//! A setting has the same name in all of them. `nats.servers` is `servers` in the table `[nats]` of the TOML file,
//! `TIDEGATE_NATS__SERVERS` in the environment and `--nats-servers` as a flag.

mod docs;
pub mod duration;
mod keys;
mod list;
mod log_filter;
mod sections;
mod variables;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};
use config::{Config, ConfigError, Environment, File, FileFormat, Map, Source, Value};
use serde::{Serialize, de::DeserializeOwned};

pub use docs::docs_of;
use keys::Keys;
pub use list::comma_separated;
pub use log_filter::parse_log_filter;
pub use sections::{AdminSection, CommonSettings, LogFormat, LogSection, NatsSection, TelemetrySection};
pub use variables::check_variables;

use crate::Description;

/// Environment variables with the prefix of settings that are none: those of all services, of tests, of the command line, and
/// of `deploy/compose.yaml`, which may also be exported where a service is started.
const NOT_SETTINGS: [&str; 7] = [
    "TIDEGATE_CONFIG",
    "TIDEGATE_PORTS_FILE",
    "TIDEGATE_NATS_SERVER",
    "TIDEGATE_AUTHOR",
    "TIDEGATE_PORT_US",
    "TIDEGATE_PORT_EU",
    "TIDEGATE_OTLP_ENDPOINT",
];

/// Former names of settings, which are refused with the present one.
const RENAMED: [(&str, &str); 6] = [
    ("edge.name", "name"),
    ("edge.region", "region"),
    ("edge.signing_keys", "proxy.signing_keys"),
    ("computer.name", "name"),
    ("computer.region", "region"),
    ("replicator.region", "region"),
];

/// The settings of a service: plain data in sections, with a default for everything (`Option` where there is none) and
/// `#[serde(default, deny_unknown_fields)]`.
pub trait Settings: Default + Serialize + DeserializeOwned {
    /// The sections that all services have.
    fn common(&self) -> CommonSettings;

    /// The name of this instance among others of the service, for logs, traces and metrics.
    fn instance(&self) -> String;

    /// The documentation of one of its own settings; [`docs_of`] finds it for a section.
    fn docs(key: &str) -> Option<&'static str>;

    /// Checks what types can't express.
    ///
    /// # Errors
    /// The name of the wrong setting (`nats.servers`), and what would be right.
    fn check(&self) -> Result<(), (String, String)> {
        Ok(())
    }
}

/// An error of the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The command line can't be parsed, or requests help or the version.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// There is no setting of a name.
    #[error("{origin}: there is no setting {key}{}", suggestion.as_ref().map(|s| format!("; did you mean {s}?")).unwrap_or_default())]
    Unknown {
        /// Where it is.
        origin: String,
        /// The name.
        key: String,
        /// A setting with a similar name.
        suggestion: Option<String>,
    },
    /// A setting is given by its former name.
    #[error("{origin}: {key} is now {now}")]
    Renamed {
        /// Where it is.
        origin: String,
        /// The former name.
        key: String,
        /// The name.
        now: String,
    },
    /// The file can't be read, or a value is not of its setting's type.
    #[error("{0}")]
    Value(String),
    /// A setting is missing or invalid.
    #[error("{key}: {problem} (set it by {key} in the file, by {variable}, or by {flag})")]
    Wrong {
        /// The setting.
        key: String,
        /// What would be right.
        problem: String,
        /// Its variable.
        variable: String,
        /// Its flag.
        flag: String,
    },
}

/// Loaded settings.
#[derive(Debug)]
pub struct Loaded<S> {
    /// The settings.
    pub settings: S,
    /// The file for the addresses that the service listens on.
    pub ports_file: Option<PathBuf>,
}

/// Loads the settings of a service from the command line `args` (the program's name first) and the environment `env`.
///
/// # Errors
/// The first error, with its origin and what would be right.
pub fn load<S: Settings>(
    about: &Description,
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<S>, SettingsError> {
    let keys = Keys::of(&S::default());
    let matches = command::<S>(about, &keys)
        .try_get_matches_from(args)
        .map_err(|error| unknown_flag(&keys, &error).unwrap_or(SettingsError::Flags(error)))?;
    if let Some((former, now)) = RENAMED.into_iter().find(|(former, _)| matches.contains_id(former)) {
        let flag = |key| format!("--{}", keys::flag(key));
        return Err(SettingsError::Renamed { origin: FLAGS.to_owned(), key: flag(former), now: flag(now) });
    }
    let env: BTreeMap<String, String> = env.into_iter().collect();
    let path = |flag: &str, variable: &str| {
        let given = matches.get_one::<String>(flag).or_else(|| env.get(variable));
        given.map(PathBuf::from)
    };
    let mut sources: Vec<(String, Box<dyn Source + Send + Sync>)> = Vec::new();
    if let Some(file) = path("config", "TIDEGATE_CONFIG") {
        let origin = file.display().to_string();
        sources.push((origin, Box::new(File::from(file).format(FileFormat::Toml).required(true))));
    }
    let variables = env
        .iter()
        .filter(|(name, value)| !NOT_SETTINGS.contains(&name.as_str()) && !value.is_empty())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let environment = Environment::with_prefix("TIDEGATE").prefix_separator("_").separator("__");
    sources.push(("the environment".to_owned(), Box::new(environment.source(Some(variables)))));
    sources.push((FLAGS.to_owned(), Box::new(Flags::new(&keys, &matches))));

    let defaults = Config::try_from(&S::default()).map_err(|error| value_error(&error, &BTreeMap::new()))?;
    let mut builder = Config::builder().add_source(defaults);
    let mut origins = BTreeMap::new();
    for (origin, source) in sources {
        record_origins(&keys, &origin, source.as_ref(), &mut origins)?;
        builder = builder.add_source(vec![source]);
    }
    let settings: S = builder
        .build()
        .and_then(Config::try_deserialize)
        .map_err(|error| value_error(&with_choices::<S>(error), &origins))?;
    for checked in [settings.common().check(), settings.check()] {
        checked.map_err(|(key, problem)| SettingsError::Wrong {
            variable: keys::variable(&key),
            flag: format!("--{}", keys::flag(&key)),
            key,
            problem,
        })?;
    }
    Ok(Loaded { settings, ports_file: path("ports-file", "TIDEGATE_PORTS_FILE") })
}

/// The origin of settings that are given as flags.
const FLAGS: &str = "the flags";

/// The error of a flag that does not exist, with a similar one.
fn unknown_flag(keys: &Keys, error: &clap::Error) -> Option<SettingsError> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let ContextValue::String(given) = error.get(ContextKind::InvalidArg)? else { return None };
    let suggestion = keys.nearest_flag(given.strip_prefix("--")?).map(|flag| format!("--{flag}"));
    Some(SettingsError::Unknown { origin: FLAGS.to_owned(), key: given.clone(), suggestion })
}

/// Names the possible values in the error of a setting that is none of them.
fn with_choices<S: Settings>(error: ConfigError) -> ConfigError {
    const NOT_A_CHOICE: &str = " does not have variant constructor ";
    if let ConfigError::At { error: inner, origin, key: Some(key) } = &error
        && let ConfigError::Message(said) = &**inner
        && let Some((_, given)) = said.split_once(NOT_A_CHOICE)
    {
        let choices = keys::choices(&S::default(), key).join(" or ");
        let error = Box::new(ConfigError::Message(format!("{given:?} is not {choices}")));
        return ConfigError::At { error, origin: origin.clone(), key: Some(key.clone()) };
    }
    error
}

/// The error of a value. `origins` holds the origins of the values, which an error does not always know.
fn value_error(error: &ConfigError, origins: &BTreeMap<String, String>) -> SettingsError {
    let mut text = error.to_string().trim().replace('\n', " ");
    if let ConfigError::At { origin: None, key: Some(key), .. } = error
        && let Some(origin) = origins.get(key)
    {
        text = format!("{text} in {origin}");
    }
    SettingsError::Value(text)
}

/// The command line: one flag for each setting.
fn command<S: Settings>(about: &Description, keys: &Keys) -> Command {
    let own = [
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("Read settings from this TOML file [env: TIDEGATE_CONFIG]"),
        Arg::new("ports-file").long("ports-file").value_name("FILE").help(
            "Write the addresses that are listened on to this file, as JSON [env: TIDEGATE_PORTS_FILE]",
        ),
    ];
    let settings = keys.iter().map(|(key, default)| {
        let default = default.as_ref().map(|d| format!(" [default: {d}]")).unwrap_or_default();
        let choices = match keys::choices(&S::default(), key) {
            words if words.is_empty() => String::new(),
            words => format!(" [possible values: {}]", words.join(", ")),
        };
        let docs = CommonSettings::docs(key).or_else(|| S::docs(key)).unwrap_or_default();
        debug_assert!(!docs.is_empty(), "{key} is not documented");
        let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ").replace('`', "");
        Arg::new(key.clone())
            .long(keys::flag(key))
            .value_name("VALUE")
            .help(format!("{docs}{choices} [env: {}]{default}", keys::variable(key)))
    });
    let renamed = RENAMED.map(|(former, _)| Arg::new(former).long(keys::flag(former)).hide(true));
    Command::new(about.name)
        .about(about.about)
        .version(about.version)
        .override_usage(format!("{0} [OPTIONS]\n       {0} healthcheck [OPTIONS]", about.name))
        .after_help("healthcheck asks the service that runs with the same settings whether it is ready (admin.bind): exit code 0 or 1.")
        .args(own)
        .args(settings)
        .args(renamed)
}

/// Records the origins of settings, and refuses names that are no settings, for which `serde` can't name the source.
fn record_origins(
    keys: &Keys,
    origin: &str,
    source: &dyn Source,
    origins: &mut BTreeMap<String, String>,
) -> Result<(), SettingsError> {
    let collected = source.collect().map_err(|error| value_error(&error, origins))?;
    for (key, value_origin) in keys::leaves(collected) {
        let in_environment = origin == "the environment";
        let shown = |key: &str| if in_environment { keys::variable(key) } else { key.to_owned() };
        if !keys.contains(&key) {
            if let Some((_, now)) = RENAMED.into_iter().find(|(former, _)| *former == key) {
                let (key, now) = (shown(&key), shown(now));
                return Err(SettingsError::Renamed { origin: origin.to_owned(), key, now });
            }
            let suggestion = keys.nearest(&key).map(shown);
            return Err(SettingsError::Unknown { origin: origin.to_owned(), key: shown(&key), suggestion });
        }
        let from = if in_environment { format!("the environment, {}", shown(&key)) } else { value_origin };
        origins.insert(key, if from.is_empty() { origin.to_owned() } else { from });
    }
    Ok(())
}

/// The flags that were given, each naming itself as the origin of its value.
#[derive(Debug, Clone)]
struct Flags(Vec<(String, Value)>);

impl Flags {
    fn new(keys: &Keys, matches: &ArgMatches) -> Flags {
        let given = keys.iter().filter_map(|(key, _)| {
            let value = matches.get_one::<String>(key)?;
            let origin = format!("the flag --{}", keys::flag(key));
            Some((key.clone(), Value::new(Some(&origin), value.as_str())))
        });
        Flags(given.collect())
    }
}

impl Source for Flags {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.iter().cloned().collect())
    }
}
