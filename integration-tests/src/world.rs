//! A whole system: a nats-server, and in two regions origins, probers, route-computers, a replicator and an edge, each a process.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tidegate_bus::{Bus, Credentials, NatsSettings, clock, seal::Signer, testing::NatsServer};
use tidegate_model::SigningPublicKey;
use tokio::time::Instant;

use crate::{
    binaries, client,
    directory::Directory,
    metrics::Metrics,
    origin::Origin,
    plan::{self, HOST, Plan, REGIONS, RegionPlan},
    process::{LOOK_EVERY, Process},
    watch::Watch,
};

/// How long a service may take to start, and the whole to become well.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// A user besides those that are deployed, who may do all.
pub const ALL: &str = "all";

/// A system of real processes. All are killed when it is dropped.
#[derive(Debug)]
pub struct World {
    /// What is heard on its bus.
    pub watch: Watch,
    /// Endpoints by name.
    pub origins: BTreeMap<String, Origin>,
    /// Probers by name.
    pub probers: BTreeMap<String, Process>,
    /// Route-computers by name.
    pub computers: BTreeMap<String, Process>,
    /// Replicators by region.
    pub replicators: BTreeMap<String, Process>,
    /// Edges by name.
    pub edges: BTreeMap<String, Process>,
    /// The bus's server.
    pub nats: NatsServer,
    directory: Directory,
    /// The public keys of its route-computers, where they sign.
    signing_keys: BTreeMap<String, SigningPublicKey>,
}

impl World {
    /// Starts a world and waits until all is well in it.
    ///
    /// # Errors
    /// When a process cannot be started, or it does not become well in time.
    pub async fn start(plan: &Plan) -> anyhow::Result<World> {
        let world = World::start_without_fleet(plan).await?;
        let fleet = world.fleet();
        world.apply(&fleet).await?;
        world.until_well(START_LIMIT).await?;
        Ok(world)
    }

    /// Starts a world to which no fleet was applied yet.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub async fn start_without_fleet(plan: &Plan) -> anyhow::Result<World> {
        let directory = Directory::new()?;
        let mut origins = BTreeMap::new();
        for name in REGIONS.iter().flat_map(RegionPlan::origins) {
            origins.insert(name.clone(), Origin::start(&name, directory.path()).await?);
        }
        let nats = NatsServer::start_guarded(&permissions(&directory, &fleet_of(&origins))?);
        let watch = Watch::start(nats_settings(&nats, ALL, "tidegate-watch")).await?;
        let mut world = World {
            signing_keys: BTreeMap::new(),
            watch,
            origins,
            probers: BTreeMap::new(),
            computers: BTreeMap::new(),
            replicators: BTreeMap::new(),
            edges: BTreeMap::new(),
            nats,
            directory,
        };
        if plan.is_signed {
            for name in REGIONS.iter().flat_map(|region| region.computers(plan.computers)) {
                let key = Signer::create(&world.key_file(&name))?.public_key();
                world.signing_keys.insert(name, key);
            }
        }
        for region in REGIONS {
            world.start_region(plan, &region)?;
        }
        Ok(world)
    }

    /// The file of a route-computer's private key.
    fn key_file(&self, computer: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("{computer}.key"))
    }

    fn start_region(&mut self, plan: &Plan, region: &RegionPlan) -> anyhow::Result<()> {
        let path = self.directory.path().to_owned();
        let mut common = Vec::new();
        if let Some(endpoint) = &plan.otlp_endpoint {
            common.extend(["--telemetry-otlp-endpoint".to_owned(), endpoint.clone()]);
        }
        let nats = &self.nats;
        let start = |program: &str, name: &str, user: &str, own: &[String]| {
            let bus = nats_flags(nats, user);
            Process::start(program, name, &path, own.iter().chain(&bus).chain(&common).cloned().collect())
        };
        for number in 1..=plan.probers {
            let name = format!("prober-{}-{number}", region.name);
            let own = ["--region", region.name, "--name", &name].map(str::to_owned);
            let process = start("tidegate-health-prober", &name, &region.prober_user(), &own)?;
            self.probers.insert(name, process);
        }
        let own = ["--region", region.name].map(str::to_owned);
        let name = format!("replicator-{}", region.name);
        let process = start("tidegate-replicator", &name, &region.replicator_user(), &own)?;
        self.replicators.insert(region.name.to_owned(), process);
        for name in region.computers(plan.computers) {
            let key = self.key_file(&name).display().to_string();
            let signs = self.signing_keys.get(&name).map(|_| ["--computer-signing-key".to_owned(), key]);
            let own = [
                "--region".to_owned(),
                region.name.to_owned(),
                "--name".to_owned(),
                name.clone(),
                "--computer-slow-start".to_owned(),
                format!("{}ms", plan.slow_start.as_millis()),
                "--computer-damping-first-suppression".to_owned(),
                format!("{}ms", plan.first_suppression.as_millis()),
            ];
            let own: Vec<String> = own.into_iter().chain(signs.iter().flatten().cloned()).collect();
            let process = start("tidegate-route-computer", &name, &region.computer_user(), &own)?;
            self.computers.insert(name, process);
        }
        let state = path.join(format!("{}.state", region.edge)).display().to_string();
        let own = [
            "--name",
            region.edge,
            "--region",
            region.name,
            "--proxy-workers",
            &plan.workers.to_string(),
            "--proxy-state-dir",
            &state,
        ]
        .map(str::to_owned);
        let keys: Vec<String> = self.signing_keys.values().map(ToString::to_string).collect();
        let pins = plan.pins_key.then(|| ["--proxy-signing-keys".to_owned(), keys.join(",")]);
        let own: Vec<String> = own.into_iter().chain(pins.into_iter().flatten()).collect();
        let process = start("tidegate-proxy", region.edge, &region.edge_user(), &own)?;
        self.edges.insert(region.edge.to_owned(), process);
        Ok(())
    }

    /// The fleet file of this world, which names the keys of all route-computers that sign.
    pub fn fleet(&self) -> String {
        self.fleet_without_key("")
    }

    /// The fleet file, without the key of a route-computer.
    pub fn fleet_without_key(&self, computer: &str) -> String {
        let fleet = fleet_of(&self.origins);
        let named = self.signing_keys.iter().filter(|(name, _)| *name != computer);
        let keys: Vec<String> = named.map(|(_, key)| format!("\"{key}\"")).collect();
        if keys.is_empty() {
            return fleet;
        }
        fleet.replace("{ location: [", &format!("{{ signing_keys: [{}], location: [", keys.join(", ")))
    }

    /// Applies a fleet file by the command line.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn apply(&self, fleet: &str) -> anyhow::Result<()> {
        let file = self.write("fleet.yaml", fleet)?;
        let output = self.cli(&["apply", &file, "--yes"]).await?;
        anyhow::ensure!(output.status.success(), "apply: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Writes a file into this world's folder and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let file = self.directory.path().join(name);
        std::fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))?;
        Ok(file.display().to_string())
    }

    /// A connection to the bus as `user`.
    ///
    /// # Errors
    /// When the bus cannot be used.
    pub async fn bus(&self, user: &str) -> anyhow::Result<Bus> {
        Ok(Bus::connect(nats_settings(&self.nats, user, "a test")).await?)
    }

    /// Waits until all is well ([`crate::ledger::Ledger::is_well`]).
    ///
    /// # Errors
    /// When it is not after `limit`.
    pub async fn until_well(&self, limit: Duration) -> anyhow::Result<()> {
        self.watch.until("all is well", limit, |ledger| ledger.is_well().then_some(())).await
    }

    /// Waits until all is well by what was said after this call.
    ///
    /// # Errors
    /// When it is not after `limit`.
    pub async fn until_well_again(&self, limit: Duration) -> anyhow::Result<()> {
        let now = clock::now();
        self.watch.until("all is well again", limit, |l| l.is_well_since(now).then_some(())).await
    }

    /// The address at which an edge serves users.
    ///
    /// # Errors
    /// When it does not come to listen.
    pub async fn edge_address(&mut self, edge: &str) -> anyhow::Result<SocketAddr> {
        let process = self.edges.get_mut(edge).with_context(|| format!("there is no {edge}"))?;
        Ok(process.addresses(&["http"], START_LIMIT).await?[0])
    }

    /// The metrics of an edge.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn edge_metrics(&mut self, edge: &str) -> anyhow::Result<Metrics> {
        let process = self.edges.get_mut(edge).with_context(|| format!("there is no {edge}"))?;
        let admin = process.addresses(&["admin"], START_LIMIT).await?[0];
        Metrics::read(admin).await
    }

    /// The metrics of every route-computer.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn computers_metrics(&mut self) -> anyhow::Result<Vec<Metrics>> {
        let mut all = Vec::new();
        for process in self.computers.values_mut() {
            all.push(Metrics::read(process.addresses(&["admin"], START_LIMIT).await?[0]).await?);
        }
        Ok(all)
    }

    /// Which origin answers a GET through `edge`, with the status.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ask(&mut self, edge: &str) -> anyhow::Result<(u16, String)> {
        let address = self.edge_address(edge).await?;
        let answer = client::get(address, HOST, "/").await?;
        let origin = answer.headers().get("x-origin").and_then(|name| name.to_str().ok());
        Ok((answer.status().as_u16(), origin.unwrap_or_default().to_owned()))
    }

    /// The page `/status` of a route-computer.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn computer_status(&mut self, computer: &str) -> anyhow::Result<serde_json::Value> {
        let process = self.computers.get_mut(computer).with_context(|| format!("there is no {computer}"))?;
        let admin = process.addresses(&["admin"], START_LIMIT).await?[0];
        let answer = client::get(admin, "admin", "/status").await?;
        Ok(serde_json::from_slice(answer.body())?)
    }

    /// Where an edge keeps its last table.
    pub fn state_file(&self, edge: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("{edge}.state/{edge}.routes.json"))
    }

    /// All went well: nobody needs the logs.
    pub fn succeeded(&self) {
        self.directory.succeeded();
    }
}

/// The fleet file of a world with these origins.
fn fleet_of(origins: &BTreeMap<String, Origin>) -> String {
    plan::fleet(&origins.iter().map(|(name, origin)| (name.clone(), origin.address())).collect())
}

/// The permissions that `tidegate bus-permissions` prints for a fleet, where the password of each user is its name, and one
/// more user may do all.
fn permissions(directory: &Directory, fleet: &str) -> anyhow::Result<String> {
    let file = directory.path().join("users.yaml");
    std::fs::write(&file, fleet)?;
    let printed = binaries::command("tidegate")?.arg("bus-permissions").arg(&file).output()?;
    anyhow::ensure!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    Ok(with_known_passwords(&String::from_utf8(printed.stdout)?))
}

/// Permissions in which the password of each user is its name, and one more user may do all.
pub fn with_known_passwords(permissions: &str) -> String {
    let mut user = "";
    let mut text = String::new();
    for line in permissions.lines() {
        match line.trim().split_once(": ") {
            Some(("user", name)) => user = name,
            Some(("password", _)) => {
                text += &format!("password: {user}\n");
                continue;
            }
            _ => {}
        }
        text += line;
        text.push('\n');
    }
    text.replace("users: [", &format!("users: [ {{ user: {ALL}, password: {ALL} }}"))
}

/// The flags by which a service speaks as `user` on the bus.
fn nats_flags(nats: &NatsServer, user: &str) -> [String; 6] {
    ["--nats-servers", &nats.url(), "--nats-user", user, "--nats-password", user].map(str::to_owned)
}

fn nats_settings(nats: &NatsServer, user: &str, name: &str) -> NatsSettings {
    let mut settings = NatsSettings::new([nats.url()], name);
    settings.credentials = Credentials::Password { user: user.to_owned(), password: user.to_owned() };
    settings
}

/// Waits until `look` finds something, looking again and again.
///
/// # Errors
/// When it has found nothing after `limit`, or fails.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "not after {limit:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
