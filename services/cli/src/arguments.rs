//! The command line.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use tidegate_model::{ClusterName, EdgeName, RegionName, ServiceName, fleet::parse_duration};
use tidegate_routing::{Hypothesis, Loss};

/// Checks and applies fleet files, shows the state of a running system, and drains or forces traffic.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, propagate_version = true)]
pub struct Arguments {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented fleet file to start from.
    #[command(after_help = "Example:\n    tidegate init fleet.yaml")]
    Init {
        /// The file to write.
        #[arg(default_value = "fleet.yaml")]
        file: PathBuf,
        /// Overwrite an existing file.
        #[arg(long)]
        force: bool,
    },
    /// Check a fleet file: report all errors in it, and warn of what is valid and probably not meant.
    #[command(
        after_help = "Exit codes: 0 when the file is valid, 2 when it has errors, or warnings and --strict is given.\n\n\
                      Examples:\n    tidegate check fleet.yaml\n    tidegate check fleet.yaml --strict"
    )]
    Check {
        /// The fleet file; `-` is standard input.
        file: PathBuf,
        /// Exit with code 2 when there are warnings.
        #[arg(long)]
        strict: bool,
    },
    /// Print the JSON Schema of fleet files, for editors.
    #[command(after_help = "Example:\n    tidegate schema")]
    Schema {
        /// Print a reference of all fields in Markdown instead.
        #[arg(long)]
        markdown: bool,
    },
    /// Check a fleet file and apply it.
    #[command(
        after_help = "Examples:\n    tidegate apply fleet.yaml --dry-run\n    tidegate apply fleet.yaml --reason \"more machines\"\n    tidegate apply fleet.yaml --watch"
    )]
    Apply {
        /// The fleet file; `-` is standard input.
        file: PathBuf,
        /// Keep running: wait for the bus, and apply each change of the file, also through symbolic links.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        options: ApplyOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Show, compare and take back what was applied.
    #[command(
        after_help = "Examples:\n    tidegate fleet get\n    tidegate fleet diff --file fleet.yaml\n    tidegate fleet history\n    tidegate fleet rollback 1764422150000 --reason \"wrong weights\""
    )]
    Fleet {
        #[command(subcommand)]
        action: FleetAction,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Show each region's table, edges, clusters, and the clusters that serve each service.
    #[command(
        after_help = "Exit codes: 0 when all is well, 3 when something has a problem (a service is not ready, an edge is missing, \
                      stale or behind, no leader publishes, a region lacks a prober, route-computer or replicator, no cluster of a service is up), 1 when not all could be read.\n\n\
                      Examples:\n    tidegate status\n    tidegate status --watch"
    )]
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Refresh every second until interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Send no new traffic to a cluster, or take an edge out of rotation.
    #[command(
        after_help = "Examples:\n    tidegate drain cluster us-east-1 --for 30m --reason upgrade\n    tidegate drain region us-east\n    tidegate drain edge edge-us-1"
    )]
    Drain {
        #[command(subcommand)]
        target: DrainTarget,
        #[command(flatten)]
        options: DrainOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Withdraw a drain.
    #[command(after_help = "Example:\n    tidegate undrain cluster us-east-1")]
    Undrain {
        #[command(subcommand)]
        target: DrainTarget,
        #[command(flatten)]
        options: WithdrawOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Send all of a service's traffic to one cluster first.
    #[command(after_help = "Example:\n    tidegate force shop --to eu-west-1 --for 1h")]
    Force {
        /// The service.
        service: ServiceName,
        /// The cluster that its requests go to.
        #[arg(long)]
        to: ClusterName,
        #[command(flatten)]
        options: DrainOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Withdraw a forced route.
    #[command(after_help = "Example:\n    tidegate unforce shop")]
    Unforce {
        /// The service.
        service: ServiceName,
        #[command(flatten)]
        options: WithdrawOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Manage a running edge.
    #[command(after_help = "Example:\n    tidegate edge reset edge-us-1")]
    Edge {
        #[command(subcommand)]
        action: EdgeAction,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Print the permissions on the bus as settings of nats-server, with a user for each edge of the fleet file.
    #[command(
        after_help = "Example:\n    tidegate bus-permissions fleet.yaml --region us-east --passwords bus"
    )]
    BusPermissions {
        /// The fleet file; `-` is standard input.
        file: PathBuf,
        /// Only the users of this region: for a region with servers of its own.
        #[arg(long)]
        region: Option<RegionName>,
        /// A directory with a password file for each user, to print passwords in place of variables; missing files are created.
        #[arg(long)]
        passwords: Option<PathBuf>,
    },
    /// Create a private key with which route-computers sign tables, and print the public key for the fleet file.
    #[command(after_help = "Example:\n    tidegate signing-key --out signing.key")]
    SigningKey {
        /// The file for the private key, which must not exist.
        #[arg(long)]
        out: PathBuf,
    },
    /// Explain why a service's requests go to its clusters in this order with these shares.
    #[command(after_help = "Example:\n    tidegate explain shop --region us-east")]
    Explain {
        /// The service.
        service: ServiceName,
        /// The region whose table is explained.
        #[arg(long)]
        region: RegionName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Compute what would happen if clusters, edges or regions were lost, or demand were another: shares, headroom, and who
    /// sheds. Changes nothing.
    #[command(
        after_help = "Examples:\n    tidegate what-if --lose cluster=us-east-1\n    tidegate what-if --lose region=us-east --demand x1.5"
    )]
    WhatIf {
        #[command(flatten)]
        options: WhatIfOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Show past events: failures, decisions with their reasons, and when each edge applied them.
    #[command(
        after_help = "Examples:\n    tidegate events --since 12h\n    tidegate events --follow --region us-east"
    )]
    Events {
        /// Keep running and show new events.
        #[arg(long)]
        follow: bool,
        /// The age of the oldest event to show, such as 30m, 12h or 7d.
        #[arg(long, default_value = "1h", value_parser = period)]
        since: Duration,
        /// Show events of this region only.
        #[arg(long)]
        region: Option<RegionName>,
        /// Print JSON, one event per line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Run a prober, a route-computer and an edge in this process, without NATS: to try Tidegate on one machine.
    #[command(after_help = "Example:\n    tidegate dev fleet.yaml")]
    Dev(DevOptions),
    /// Run a server that responds to each request with its name: an origin to try Tidegate with.
    #[command(after_help = "Example:\n    tidegate origin --name green --listen 127.0.0.1:9001")]
    Origin(OriginOptions),
}

/// The actions on an edge.
#[derive(Debug, Clone, Subcommand)]
pub enum EdgeAction {
    /// Clear its epoch fence and make it fetch its region's table again; it keeps serving meanwhile.
    Reset {
        /// The edge.
        name: EdgeName,
    },
}

/// How to reach the bus.
#[derive(Debug, Clone, Args)]
pub struct BusOptions {
    /// Addresses of NATS servers, separated by commas.
    #[arg(long, env = "TIDEGATE_NATS__SERVERS", default_value = "nats://127.0.0.1:4222", global = true)]
    pub nats_servers: String,
    /// A `.creds` file for NATS.
    #[arg(long, env = "TIDEGATE_NATS__CREDENTIALS", global = true)]
    pub nats_credentials: Option<PathBuf>,
    /// A user's name for NATS, with its password.
    #[arg(long, env = "TIDEGATE_NATS__USER", global = true)]
    pub nats_user: Option<String>,
    /// The user's password.
    #[arg(long, env = "TIDEGATE_NATS__PASSWORD", hide_env_values = true, global = true)]
    pub nats_password: Option<String>,
    /// A file with the user's password, instead of `--nats-password`.
    #[arg(long, env = "TIDEGATE_NATS__PASSWORD_FILE", global = true)]
    pub nats_password_file: Option<PathBuf>,
    /// A token for NATS, instead of a user.
    #[arg(long, env = "TIDEGATE_NATS__TOKEN", hide_env_values = true, global = true)]
    pub nats_token: Option<String>,
    /// PEM file with the authorities that are trusted; with it TLS is required.
    #[arg(long, env = "TIDEGATE_NATS__CA", global = true)]
    pub nats_ca: Option<PathBuf>,
    /// PEM file with the certificate that is shown to NATS, with its key.
    #[arg(long, env = "TIDEGATE_NATS__CERTIFICATE", global = true)]
    pub nats_certificate: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[arg(long, env = "TIDEGATE_NATS__KEY", global = true)]
    pub nats_key: Option<PathBuf>,
    /// Replicas of each bucket, on as many NATS servers: 1, 3 or 5.
    #[arg(long, env = "TIDEGATE_NATS__BUCKET_REPLICAS", default_value_t = 1, value_parser = bucket_replicas, global = true)]
    pub nats_bucket_replicas: usize,
    /// The time limit for the bus.
    #[arg(long, default_value = "5s", value_parser = parse_duration, global = true)]
    pub timeout: Duration,
}

fn bucket_replicas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(copies @ (1 | 3 | 5)) => Ok(copies),
        _ => Err("1, 3 or 5 is needed".to_owned()),
    }
}

/// Parses a time in the form of the fleet file, or whole hours or days such as `48h` or `7d`, up to a year.
fn period(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_secs(366 * 24 * 3600);
    if text.starts_with('-') {
        return Err("a duration is positive, such as 30m, 48h or 7d".to_owned());
    }
    let (digits, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let seconds = match unit {
        "h" => 3600,
        "d" => 24 * 3600,
        _ => {
            return parse_duration(text)
                .map_err(|wrong| format!("{wrong} (hours and days may be more: 36h, 7d)"));
        }
    };
    let Ok(count) = digits.parse::<u64>() else {
        return Err(format!("{text:?} is not a time such as 30m, 48h or 7d"));
    };
    match Duration::from_secs(count.saturating_mul(seconds)) {
        Duration::ZERO => Err(format!("{text} is not longer than zero")),
        period if period > longest => Err(format!("{text} is longer than 366d")),
        period => Ok(period),
    }
}

/// The object to drain.
#[derive(Debug, Clone, Subcommand)]
pub enum DrainTarget {
    /// A cluster.
    Cluster {
        /// Its name.
        name: ClusterName,
    },
    /// An edge.
    Edge {
        /// Its name.
        name: EdgeName,
    },
    /// All clusters of a region.
    Region {
        /// Its name.
        name: RegionName,
    },
    /// A name without its kind.
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

/// The options of an override.
#[derive(Debug, Clone, Args)]
pub struct DrainOptions {
    /// The duration, such as 30m, 48h or 7d; without it, until it is withdrawn.
    #[arg(long = "for", value_parser = period, allow_hyphen_values = true, global = true)]
    pub length: Option<Duration>,
    /// The reason.
    #[arg(long, default_value = "", global = true)]
    pub reason: String,
    /// The author; when absent, the user's name, or else the user of the bus or of this host.
    #[arg(long, env = "TIDEGATE_AUTHOR", global = true)]
    pub author: Option<String>,
    /// Do it even if it contradicts another override, has a target that is down, or leaves a service with nothing else.
    #[arg(long, global = true)]
    pub yes: bool,
}

/// The options of the withdrawal of an override.
#[derive(Debug, Clone, Args)]
pub struct WithdrawOptions {
    /// The reason.
    #[arg(long, default_value = "", global = true)]
    pub reason: String,
    /// The author; when absent, the user's name, or else the user of the bus or of this host.
    #[arg(long, env = "TIDEGATE_AUTHOR", global = true)]
    pub author: Option<String>,
}

/// The options of `what-if`.
#[derive(Debug, Clone, Args)]
#[group(id = "hypothesis", required = true, multiple = true, args = ["lose", "demand"])]
pub struct WhatIfOptions {
    /// What is lost: `region=NAME` (all its clusters and edges), `cluster=NAME` or `edge=NAME`. May be given several times.
    #[arg(long, value_name = "KIND=NAME")]
    pub lose: Vec<Loss>,
    /// The factor of all demand, such as x1.5.
    #[arg(long, value_name = "FACTOR")]
    pub demand: Option<DemandFactor>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A factor of demand, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemandFactor(pub u32);

impl FromStr for DemandFactor {
    type Err = String;
    fn from_str(text: &str) -> Result<DemandFactor, String> {
        let most = Hypothesis::MOST_DEMAND_PERMILLE / 1000;
        let factor = text.strip_prefix('x').unwrap_or(text).parse::<f64>();
        match factor {
            Ok(factor) if (0.0..=f64::from(most)).contains(&factor) => {
                Ok(DemandFactor((factor * 1000.0).round() as u32))
            }
            Ok(_) | Err(_) => Err(format!("a factor such as x1.5 is needed, from x0 to x{most}")),
        }
    }
}

/// The options of what may need confirmation.
#[derive(Debug, Clone, Args)]
pub struct GuardOptions {
    /// Apply it even if a service would lose its last cluster, or more traffic would move than --max-moved.
    #[arg(long)]
    pub yes: bool,
    /// The part of all traffic, in percent, that may move without --yes.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub max_moved: u8,
}

/// The options of `apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyOptions {
    /// Change nothing: print what would change, and which traffic would move where.
    #[arg(long, conflicts_with = "watch")]
    pub dry_run: bool,
    /// With --dry-run, print JSON.
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    #[command(flatten)]
    pub guard: GuardOptions,
    /// The reason, for the history.
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The author; when absent, the user's name, or else the user of the bus or of this host.
    #[arg(long, env = "TIDEGATE_AUTHOR")]
    pub author: Option<String>,
    /// Apply only if the fleet is at this revision; 0: only if none was applied yet.
    #[arg(long, value_name = "REVISION", conflicts_with = "watch")]
    pub expect_revision: Option<u64>,
}

/// The options of `fleet rollback`.
#[derive(Debug, Clone, Args)]
pub struct RollbackOptions {
    /// The reason, for the history.
    #[arg(long)]
    pub reason: String,
    /// The author; when absent, the user's name, or else the user of the bus or of this host.
    #[arg(long, env = "TIDEGATE_AUTHOR")]
    pub author: Option<String>,
    /// Apply only if the fleet is at this revision.
    #[arg(long, value_name = "REVISION")]
    pub expect_revision: Option<u64>,
    #[command(flatten)]
    pub guard: GuardOptions,
}

/// The actions on the fleet file on the bus.
#[derive(Debug, Clone, Subcommand)]
pub enum FleetAction {
    /// Print the fleet file as it was applied, comments and all.
    #[command(
        after_help = "Examples:\n    tidegate fleet get\n    tidegate fleet get --revision 1764422150000"
    )]
    Get {
        /// An earlier revision instead of the current one.
        #[arg(long)]
        revision: Option<u64>,
    },
    /// Print what differs by meaning: which regions, clusters, edges, listeners, services and shares.
    #[command(
        after_help = "Examples:\n    tidegate fleet diff\n    tidegate fleet diff 1764422150000\n    tidegate fleet diff 1764422150000 1764422160000\n    tidegate fleet diff --file fleet.yaml"
    )]
    Diff {
        /// The revision to compare from; when absent, the one before the current one, or with --file the current one.
        from: Option<u64>,
        /// The revision to compare to; the current one when absent.
        to: Option<u64>,
        /// A fleet file to compare to.
        #[arg(long, conflicts_with = "to")]
        file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the revisions that are kept: who applied each, when and why, and what it changed.
    #[command(after_help = "Example:\n    tidegate fleet history")]
    History {
        /// Print JSON, one revision per line.
        #[arg(long)]
        json: bool,
    },
    /// Apply an earlier revision again, as a new one.
    #[command(after_help = "Example:\n    tidegate fleet rollback 1764422150000 --reason \"wrong weights\"")]
    Rollback {
        /// The revision.
        revision: u64,
        #[command(flatten)]
        options: RollbackOptions,
    },
}

/// The options of `dev`.
#[derive(Debug, Clone, Args)]
pub struct DevOptions {
    /// The fleet file; `-` is standard input, which is read once.
    #[arg(default_value = "fleet.yaml")]
    pub file: PathBuf,
    /// The edge to run; when absent, the first by name.
    #[arg(long)]
    pub edge: Option<EdgeName>,
    /// Take over from another process of this edge: share its ports until it is stopped.
    #[arg(long)]
    pub take_over: bool,
    /// The number of worker threads; 0: one per core.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=i64::from(tidegate_proxy::MOST_WORKERS)))]
    pub proxy_workers: u16,
    /// The address of the admin listener.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub admin_bind: SocketAddr,
    /// The directory for the last table; a temporary one when absent.
    #[arg(long)]
    pub proxy_state_dir: Option<PathBuf>,
    /// Former names of flags, which are refused with the present ones.
    #[command(flatten)]
    pub former: FormerDevFlags,
    /// Write the listening addresses to this file, as JSON.
    #[arg(long)]
    pub ports_file: Option<PathBuf>,
}

/// Former names of the flags of `dev`.
#[derive(Debug, Clone, Args)]
pub struct FormerDevFlags {
    #[arg(long, hide = true, value_parser = former("the fleet file is now an argument: tidegate dev FILE"))]
    fleet: Option<String>,
    #[arg(long, hide = true, value_parser = former("it is now --proxy-workers"))]
    workers: Option<String>,
    #[arg(long, hide = true, value_parser = former("it is now --admin-bind"))]
    admin: Option<String>,
    #[arg(long, hide = true, value_parser = former("it is now --proxy-state-dir"))]
    state_dir: Option<String>,
}

/// Refuses a flag whose name has changed.
fn former(now: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |_| Err(now.to_owned())
}

/// The options of `origin`.
#[derive(Debug, Clone, Args)]
pub struct OriginOptions {
    /// The address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:9001")]
    pub listen: SocketAddr,
    /// The name to respond with; the address when absent.
    #[arg(long)]
    pub name: Option<String>,
    /// The size of each response body in bytes, including the name.
    #[arg(long, default_value_t = 0)]
    pub size: usize,
    /// The delay before each response.
    #[arg(long, value_parser = parse_duration)]
    pub delay: Option<Duration>,
    /// Write the address to this file, as JSON.
    #[arg(long)]
    pub ports_file: Option<PathBuf>,
}

/// An invalid argument.
#[derive(Debug)]
pub struct WrongArgument(pub String);

impl fmt::Display for WrongArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongArgument {}

/// A change that was withheld, since another operator was first or it needs confirmation. Nothing was written.
#[derive(Debug)]
pub struct WithheldChange(pub String);

impl fmt::Display for WithheldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WithheldChange {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The lines of README and docs that are commands of `tidegate`.
    fn commands_on_pages() -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let text: Vec<String> = pages
            .chain([root.join("README.md")])
            .map(|page| std::fs::read_to_string(page).unwrap())
            .collect();
        let lines =
            text.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("    tidegate "));
        // Without a comment, a redirection, or what sends it to the background.
        let command = |line: &str| line.split(['#', '>', '&']).next().unwrap_or_default().to_owned();
        lines.map(command).collect()
    }

    #[test]
    fn each_help_has_examples_that_are_commands() {
        use clap::CommandFactory as _;

        let arguments = Arguments::command();
        let commands = arguments.get_subcommands().map(|command| (command.get_name().to_owned(), command));
        let fleet = arguments.find_subcommand("fleet").unwrap();
        let of_fleet =
            fleet.get_subcommands().map(|command| (format!("fleet {}", command.get_name()), command));
        for (name, command) in commands.chain(of_fleet) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help.lines().filter(|line| line.starts_with("    tidegate ")).collect();
            assert!(!examples.is_empty(), "{name}");
            for example in examples {
                assert!(example.trim().starts_with(&format!("tidegate {name}")), "{example}");
                if let Err(error) = Arguments::try_parse_from(words(example)) {
                    panic!("{example}: {error}");
                }
            }
        }
    }

    /// The words of a command line, in which quoted texts are one word.
    fn words(line: &str) -> Vec<String> {
        let parts = line.split('"').enumerate().flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        parts.collect()
    }

    #[test]
    fn every_command_on_a_page_is_one() {
        let commands = commands_on_pages();
        assert!(commands.len() > 15, "{commands:?}");
        for command in commands {
            if let Err(error) = Arguments::try_parse_from(words(&command)) {
                panic!("{command}: {error}");
            }
        }
    }

    #[test]
    fn former_flags_are_refused_with_the_present_ones() {
        let error = |words: &[&str]| Arguments::try_parse_from(words).unwrap_err().to_string();
        assert!(error(&["tidegate", "dev", "--workers", "2"]).contains("it is now --proxy-workers"));
        assert!(error(&["tidegate", "dev", "--fleet", "x"]).contains("tidegate dev FILE"));
    }

    #[test]
    fn what_is_drained_has_a_kind() {
        let parsed = Arguments::try_parse_from(["tidegate", "drain", "us-1", "--for", "30m"]).unwrap();
        assert!(matches!(parsed.command, Command::Drain { target: DrainTarget::Unknown(_), .. }));
        let error = Arguments::try_parse_from(["tidegate", "drain", "cluster", "us-1", "--for", "-5m"]);
        assert!(error.unwrap_err().to_string().contains("a duration is positive"));
    }

    #[test]
    fn a_factor_of_demand_has_limits() {
        let parsed = |text: &str| text.parse::<DemandFactor>().map(|factor| factor.0);
        assert_eq!((parsed("x1.5"), parsed("2"), parsed("x0")), (Ok(1500), Ok(2000), Ok(0)));
        for wrong in ["", "x", "-1", "x1001", "NaN", "inf", "much"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn periods_may_be_days_and_have_limits() {
        assert_eq!(period("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(period("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(period("48h"), period("2d"));
        assert_eq!(period("36h"), Ok(Duration::from_secs(36 * 3600)));
        for wrong in ["0d", "0h", "367d", "8785h", "99999999999999999999h", "1.5d", "d", "h", "7", "", "soon"]
        {
            assert!(period(wrong).is_err(), "{wrong}");
        }
    }
}
