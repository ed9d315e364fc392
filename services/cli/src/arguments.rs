//! The command line.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use tidegate_model::{ClusterName, EdgeName, RegionName, ServiceName, fleet::parse_duration};

/// Checks and applies fleets, shows and steers what runs.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, propagate_version = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented fleet file to start from.
    Init {
        /// Where to.
        #[arg(default_value = "fleet.yaml")]
        file: PathBuf,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
    },
    /// Check a fleet file and tell all that is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print the JSON Schema of fleet files, for editors.
    Schema,
    /// Check a fleet file and make it the fleet.
    Apply {
        /// The file.
        file: PathBuf,
        /// Stay, wait for the bus, and apply each change of the file, also through symbolic links.
        #[arg(long)]
        watch: bool,
        /// Who applies it; the user's name when absent.
        #[arg(long, env = "TIDEGATE_AUTHOR")]
        author: Option<String>,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Show every region's table, edges, clusters, and who serves what from where.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Show it again every second until interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Send no new traffic to a cluster, or take an edge out of rotation.
    Drain {
        #[command(subcommand)]
        target: Target,
        #[command(flatten)]
        options: DrainOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Take a drain back.
    Undrain {
        #[command(subcommand)]
        target: Target,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Send all of a service's traffic to one cluster first.
    Force {
        /// The service.
        service: ServiceName,
        /// Where its requests go.
        #[arg(long)]
        to: ClusterName,
        #[command(flatten)]
        options: DrainOptions,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Take a forced route back.
    Unforce {
        /// The service.
        service: ServiceName,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Manage a running edge.
    Edge {
        #[command(subcommand)]
        action: EdgeAction,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Print the bus permissions for a nats-server's settings, with a user for each edge of the fleet file.
    BusPermissions {
        /// The fleet file.
        file: PathBuf,
        /// Only the users of this region: for a region with servers of its own.
        #[arg(long)]
        region: Option<RegionName>,
        /// A folder with the users' passwords, a file for each, to print in place of variables; missing ones are made.
        #[arg(long)]
        passwords: Option<PathBuf>,
    },
    /// Make a private key with which route-computers sign, and print the public one for the fleet file.
    SigningKey {
        /// The file for the private key; one that exists is left as it is.
        #[arg(long)]
        out: PathBuf,
    },
    /// Tell why a service's requests go to these clusters, in this order, with these shares.
    Explain {
        /// The service.
        service: ServiceName,
        /// The region whose table is explained.
        #[arg(long)]
        region: RegionName,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Tell what happened: what failed, what was decided and why, when each edge had it.
    Events {
        /// Stay and tell what happens from now on, too.
        #[arg(long)]
        follow: bool,
        /// How far to look back, such as 30m, 12h or 7d.
        #[arg(long, default_value = "1h", value_parser = period)]
        since: Duration,
        /// Only what happened in this region.
        #[arg(long)]
        region: Option<RegionName>,
        /// As JSON, one event a line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        bus: BusOptions,
    },
    /// Run prober, route-computer and edge in this process, without NATS: to try it on one machine.
    Dev(DevOptions),
    /// Answer every request with a name: a server to try Tidegate on.
    Origin(OriginOptions),
}

/// What is done to an edge.
#[derive(Debug, Clone, Subcommand)]
pub enum EdgeAction {
    /// Clear its epoch fence and have it fetch its region's table again; it goes on to serve meanwhile.
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
    /// Copies of each bucket, on as many NATS servers: 1, 3 or 5.
    #[arg(long, env = "TIDEGATE_NATS__BUCKET_REPLICAS", default_value_t = 1, value_parser = bucket_replicas, global = true)]
    pub nats_bucket_replicas: usize,
    /// How long to wait for the bus.
    #[arg(long, default_value = "5s", value_parser = parse_duration, global = true)]
    pub timeout: Duration,
}

fn bucket_replicas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(copies @ (1 | 3 | 5)) => Ok(copies),
        _ => Err("1, 3 or 5 is needed".to_owned()),
    }
}

/// A time as the fleet file has it, or whole hours or days, such as `48h` or `7d`, up to a year.
fn period(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_secs(366 * 24 * 3600);
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
        Duration::ZERO => Err(format!("{text} is no time at all")),
        period if period > longest => Err(format!("{text} is longer than 366d")),
        period => Ok(period),
    }
}

/// What to drain.
#[derive(Debug, Clone, Subcommand)]
pub enum Target {
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
}

/// How an operator's word is given.
#[derive(Debug, Clone, Args)]
pub struct DrainOptions {
    /// For how long, such as 30m, 48h or 7d; until it is taken back when absent.
    #[arg(long = "for", value_parser = period, global = true)]
    pub length: Option<Duration>,
    /// Why.
    #[arg(long, default_value = "", global = true)]
    pub reason: String,
    /// Who says so; the user's name when absent.
    #[arg(long, env = "TIDEGATE_AUTHOR", global = true)]
    pub author: Option<String>,
}

/// How to run everything in one process.
#[derive(Debug, Clone, Args)]
pub struct DevOptions {
    /// The fleet file.
    #[arg(long, default_value = "fleet.yaml")]
    pub fleet: PathBuf,
    /// The edge to run; when absent, the first by name.
    #[arg(long)]
    pub edge: Option<EdgeName>,
    /// Take over from another process of this edge: share its ports until it is stopped.
    #[arg(long)]
    pub take_over: bool,
    /// The number of worker threads; 0: one per core.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=i64::from(tidegate_proxy::MOST_WORKERS)))]
    pub workers: u16,
    /// The address of the admin listener.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
    /// Where the last table is kept; a temporary folder when absent.
    #[arg(long)]
    pub state_dir: Option<PathBuf>,
    /// Write the addresses that are listened on to this file, as JSON.
    #[arg(long)]
    pub ports_file: Option<PathBuf>,
}

/// How to answer.
#[derive(Debug, Clone, Args)]
pub struct OriginOptions {
    /// The address to listen on; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:9001")]
    pub listen: SocketAddr,
    /// The name to answer with; the address when absent.
    #[arg(long)]
    pub name: Option<String>,
    /// The size of each answer's body in bytes, the name included.
    #[arg(long, default_value_t = 0)]
    pub size: usize,
    /// Wait this long before each answer.
    #[arg(long, value_parser = parse_duration)]
    pub delay: Option<Duration>,
    /// Write the address to this file, as JSON.
    #[arg(long)]
    pub ports_file: Option<PathBuf>,
}

/// An argument that does not fit what there is.
#[derive(Debug)]
pub struct WrongArgument(pub String);

impl fmt::Display for WrongArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongArgument {}

#[cfg(test)]
mod tests {
    use super::*;

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
