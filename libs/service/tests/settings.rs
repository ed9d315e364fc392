//! Where settings come from, which stands above which, and what is said of wrong ones.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{ffi::OsString, fs, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tidegate_service::{
    CommonSettings, Description, Settings, SettingsError,
    settings::{
        self, AdminSection, Loaded, LogFormat, LogSection, NatsSection, TelemetrySection, comma_separated,
    },
};

const ABOUT: Description = Description { name: "tidegate-test", about: "Is tested.", version: "1.2.3" };

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TestSettings {
    nats: NatsSection,
    admin: AdminSection,
    log: LogSection,
    telemetry: TelemetrySection,
    name: Option<String>,
    workers: usize,
    #[serde(with = "settings::duration")]
    interval: Duration,
    #[serde(deserialize_with = "comma_separated")]
    networks: Vec<String>,
}

impl Default for TestSettings {
    fn default() -> Self {
        TestSettings {
            nats: NatsSection::default(),
            admin: AdminSection::default(),
            log: LogSection::default(),
            telemetry: TelemetrySection::default(),
            name: None,
            workers: 4,
            interval: Duration::from_millis(250),
            networks: Vec::new(),
        }
    }
}

impl Settings for TestSettings {
    fn common(&self) -> CommonSettings {
        CommonSettings {
            nats: self.nats.clone(),
            admin: self.admin.clone(),
            log: self.log.clone(),
            telemetry: self.telemetry.clone(),
        }
    }

    fn docs(_: &str) -> Option<&'static str> {
        Some("A setting of the test.")
    }

    fn instance(&self) -> String {
        self.name.clone().unwrap_or_default()
    }

    fn check(&self) -> Result<(), (String, String)> {
        match self.name {
            Some(_) => Ok(()),
            None => Err(("name".to_owned(), "a name is needed".to_owned())),
        }
    }
}

/// Loads from a file with `toml`, variables and flags.
fn load(toml: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Loaded<TestSettings>, SettingsError> {
    let file = temporary("settings.toml");
    fs::write(&file, toml).unwrap();
    let args = ["tidegate-test", "--config"].into_iter().map(OsString::from);
    let args = args.chain([file.clone().into_os_string()]).chain(flags.iter().map(OsString::from));
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let loaded = settings::load(&ABOUT, args, env);
    fs::remove_file(file).unwrap();
    loaded
}

fn temporary(name: &str) -> PathBuf {
    let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    std::env::temp_dir().join(format!("tidegate-{}-{unique}-{name}", std::process::id()))
}

fn error(toml: &str, env: &[(&str, &str)], flags: &[&str]) -> String {
    load(toml, env, flags).unwrap_err().to_string()
}

#[test]
fn the_later_source_stands_above_the_earlier() {
    let toml = "name = 'file'\nworkers = 1\ninterval = '1s'\n[log]\nformat = 'json'\n";
    let env = [("TIDEGATE_WORKERS", "2"), ("TIDEGATE_INTERVAL", "2s")];

    let settings = load(toml, &env, &["--interval", "3s"]).unwrap().settings;

    assert_eq!(settings.networks, Vec::<String>::new());
    assert_eq!(settings.name.as_deref(), Some("file"));
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.workers, 2);
    assert_eq!(settings.interval, Duration::from_secs(3));
}

#[test]
fn a_list_is_a_list_in_the_file_and_text_with_commas_elsewhere() {
    let toml = "name = 'x'\nnetworks = ['a', 'b']\n[nats]\nservers = 'nats://one:1, nats://two:2'\n";
    let settings = load(toml, &[], &[]).unwrap().settings;
    assert_eq!(settings.networks, ["a", "b"]);
    assert_eq!(settings.nats.servers, ["nats://one:1", "nats://two:2"]);

    let settings =
        load(toml, &[("TIDEGATE_NATS__SERVERS", "nats://three:3")], &["--networks", "c,d"]).unwrap();
    assert_eq!(settings.settings.nats.servers, ["nats://three:3"]);
    assert_eq!(settings.settings.networks, ["c", "d"]);
}

#[test]
fn an_unknown_name_is_refused_with_its_place_and_the_name_that_was_meant() {
    let said = error("name = 'x'\n[nats]\nserver = 'y'\n", &[], &[]);
    assert!(said.contains(".toml: there is no setting nats.server; did you mean nats.servers?"), "{said}");

    let said = error("name = 'x'", &[("TIDEGATE_WORKRES", "3")], &[]);
    assert_eq!(said, "the environment: there is no setting TIDEGATE_WORKRES; did you mean TIDEGATE_WORKERS?");

    let said = error("name = 'x'", &[], &["--wokers", "3"]);
    assert_eq!(said, "the flags: there is no setting --wokers; did you mean --workers?");
    let said = error("name = 'x'", &[], &["--servers", "nats://one:1"]);
    assert_eq!(said, "the flags: there is no setting --servers; did you mean --nats-servers?");
    let said = error("name = 'x'", &[], &["--something-else"]);
    assert_eq!(said, "the flags: there is no setting --something-else");
}

#[test]
fn a_former_name_is_refused_with_the_present_one() {
    let said = error("", &[], &["--edge-name", "x"]);
    assert_eq!(said, "the flags: --edge-name is now --name");
    let said = error("name = 'x'", &[("TIDEGATE_EDGE__NAME", "x")], &[]);
    assert_eq!(said, "the environment: TIDEGATE_EDGE__NAME is now TIDEGATE_NAME");
    let said = error("name = 'x'\n[computer]\nregion = 'y'\n", &[], &[]);
    assert!(said.ends_with(".toml: computer.region is now region"), "{said}");
}

#[test]
fn a_wrong_value_is_refused_with_its_place_and_what_would_be_right() {
    let said = error("name = 'x'\nworkers = 'many'\n", &[], &[]);
    assert!(said.contains("many") && said.contains("workers") && said.contains(".toml"), "{said}");
    let said = error("name = 'x'", &[("TIDEGATE_WORKERS", "many")], &[]);
    assert!(said.contains("many") && said.contains("workers") && said.contains("the environment"), "{said}");
    let said = error("name = 'x'", &[], &["--workers", "many"]);
    assert!(said.contains("many") && said.contains("the flag --workers"), "{said}");
    let said = error("name = 'x'", &[], &["--interval", "5"]);
    assert!(said.contains("250ms") && said.contains("interval"), "{said}");
    let said = error("name = \n", &[], &[]);
    assert!(said.contains(".toml") && !said.contains('\n'), "{said}");
}

#[test]
fn a_word_that_a_setting_cannot_be_is_refused_with_those_that_it_can() {
    let said = error("name = 'x'", &[], &["--log-format", "xml"]);
    assert!(said.contains("\"xml\" is not human or json") && said.contains("--log-format"), "{said}");
    let said = error("name = 'x'\n[log]\nformat = 'xml'\n", &[], &[]);
    assert!(said.contains("\"xml\" is not human or json") && said.contains(".toml"), "{said}");
    let said = error("name = 'x'", &[("TIDEGATE_LOG__FORMAT", "xml")], &[]);
    assert!(said.contains("\"xml\" is not human or json") && said.contains("TIDEGATE_LOG__FORMAT"), "{said}");
}

#[test]
fn a_log_level_that_does_not_exist_is_refused() {
    let said = error("name = 'x'", &[], &["--log-filter", "loud"]);
    assert!(said.contains("no level \"loud\"") && said.contains("--log-filter"), "{said}");
}

#[test]
fn addresses_of_the_bus_that_are_none_are_refused() {
    for wrong in ["foo:bar", "http://127.0.0.1:4222", "nats://good:4222,foo:bar"] {
        let said = error("name = 'x'", &[], &["--nats-servers", wrong]);
        assert!(said.starts_with("nats.servers: ") && said.contains("nats://127.0.0.1:4222"), "{said}");
    }
    let said = error("name = 'x'", &[], &["--nats-servers", ""]);
    assert!(said.starts_with("nats.servers: at least one address"), "{said}");
}

#[test]
fn what_is_missing_is_said_with_all_ways_to_set_it() {
    assert_eq!(
        error("", &[], &[]),
        "name: a name is needed (set it by name in the file, by TIDEGATE_NAME, or by --name)"
    );
    let said = error("name = 'x'\n[telemetry]\nsample_ratio = 7\n", &[], &[]);
    assert!(said.starts_with("telemetry.sample_ratio: a number from 0 to 1"), "{said}");
    let said = error("name = 'x'", &[("TIDEGATE_TELEMETRY__OTLP_ENDPOINT", "https://c:1")], &[]);
    assert!(said.contains("plain HTTP"), "{said}");
    let said = error("name = 'x'", &[], &["--log-filter", "info,x=loud"]);
    assert!(said.starts_with("log.filter"), "{said}");
}

#[test]
fn variables_that_are_not_settings_are_left_alone() {
    let env = [
        ("TIDEGATE_NATS_SERVER", "/bin/nats-server"),
        ("TIDEGATE_PORTS_FILE", "/tmp/p"),
        ("TIDEGATE_AUTHOR", "ann"),
        ("TIDEGATE_PORT_US", "8088"),
        ("OTHER", "x"),
    ];
    let loaded = load("name = 'x'", &env, &[]).unwrap();
    assert_eq!(loaded.ports_file, Some(PathBuf::from("/tmp/p")));
}

#[test]
fn help_shows_every_setting_with_its_variable_and_default() {
    let said = error("", &[], &["--help"]);
    for shown in [
        "--nats-servers",
        "TIDEGATE_NATS__SERVERS",
        "nats://127.0.0.1:4222",
        "[possible values: human, json]",
        "--interval",
        "250ms",
        "The servers' addresses.",
    ] {
        assert!(said.contains(shown), "{shown} is not in\n{said}");
    }
}
