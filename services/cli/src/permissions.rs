//! `tidegate bus-permissions`: the publish and subscribe permissions on the bus, with a user for each edge of a fleet and, for
//! each region, one for each kind of service whose instances have no fixed names.

use std::{collections::BTreeMap, fmt::Write as _, fs, io, path::Path};

use anyhow::Context as _;
use tidegate_bus::subjects::{
    self, EVENT_STREAM, FLEET_BUCKET, LEASE_BUCKET, OVERRIDES_BUCKET, ROUTES_BUCKET,
};
use tidegate_model::{EdgeName, RegionName, fleet::Fleet};

use crate::{arguments::WrongArgument, check, say::say};

/// The most messages of one reply: a large snapshot has many parts.
const MANY: u32 = 4096;

/// A user and its permissions.
struct User {
    name: String,
    publish: Vec<String>,
    subscribe: Vec<String>,
    /// The most messages of a reply to a request that it received; absent: it may not reply.
    responses: Option<u32>,
}

/// Prints the authorization of a nats-server: for all regions, or for one with its own server. Passwords are variables, or
/// with `passwords` those of the files in that folder, which are made where they are missing.
pub fn print(file: &Path, region: Option<&RegionName>, passwords: Option<&Path>) -> anyhow::Result<()> {
    let (_, fleet) = check::read(file)?;
    if let Some(region) = region.filter(|region| !fleet.regions.contains_key(*region)) {
        return Err(WrongArgument(format!("the fleet has no region {region} (--region)")).into());
    }
    if passwords.is_none() {
        check_variables(&users(&fleet, region))?;
    }
    say(text(&fleet, region, |user| match passwords {
        None => Ok(variable(user)),
        Some(folder) => password(folder, user).map(|password| format!("\"{password}\"")),
    })?)
}

/// The permissions as a part of a nats-server's settings.
fn text(
    fleet: &Fleet,
    region: Option<&RegionName>,
    password: impl Fn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let mut text = "# The permissions on the bus, as `tidegate bus-permissions` prints them for a fleet file: whoever takes over a service\n\
                    # can publish only as that one. Each user reads only the replies to its own requests.\n\
                    authorization {\n  users: [\n"
        .to_owned();
    for user in users(fleet, region) {
        let password = password(&user.name)?;
        // Writing to a String does not fail.
        _ = writeln!(
            text,
            "    {{\n      user: \"{}\"\n      password: {password}\n      permissions: {{",
            user.name
        );
        list(&mut text, "publish", &user.publish);
        list(&mut text, "subscribe", &user.subscribe);
        if let Some(most) = user.responses {
            _ = writeln!(text, "        allow_responses: {{ max: {most}, expires: \"10s\" }}");
        }
        text.push_str("      }\n    }\n");
    }
    text.push_str("  ]\n}\n");
    Ok(text)
}

fn list(text: &mut String, what: &str, subjects: &[String]) {
    _ = writeln!(text, "        {what}: [");
    for subject in subjects {
        _ = writeln!(text, "          \"{subject}\"");
    }
    text.push_str("        ]\n");
}

fn users(fleet: &Fleet, region: Option<&RegionName>) -> Vec<User> {
    let is_wanted = |name: &RegionName| region.is_none_or(|region| region == name);
    let edges = fleet.edges.iter().filter(|(_, edge)| is_wanted(&edge.region));
    let mut users: Vec<User> = edges.map(|(name, own)| edge(name, &own.region)).collect();
    for region in fleet.regions.keys().filter(|name| is_wanted(name)) {
        users.extend([prober(region), computer(region), replicator(region)]);
    }
    users.push(operator());
    users
}

/// A user that may subscribe to `subscribe` and the replies to its own requests.
fn user(name: String, publish: Vec<String>, subscribe: Vec<String>, responses: Option<u32>) -> User {
    let inbox = format!("_INBOX.tidegate.{name}.>");
    User { name, publish, subscribe: subscribe.into_iter().chain([inbox]).collect(), responses }
}

fn edge(name: &EdgeName, region: &RegionName) -> User {
    let (routes, claim) = (subjects::routes(region), subjects::claim("edge", region, name.as_str()));
    let mut publish = vec![
        subjects::suspicions_of(region, name),
        subjects::applied(region, name),
        subjects::load(region, name),
        subjects::event(region, name.as_str()),
        claim.clone(),
        // The snapshot of the table, when a delta was missed.
        subjects::snapshot(&routes),
    ];
    publish.extend(read_bucket(FLEET_BUCKET));
    publish.extend(read_bucket(ROUTES_BUCKET));
    user(format!("edge-{name}"), publish, vec![routes, claim, subjects::reset(region, name)], Some(1))
}

fn prober(region: &RegionName) -> User {
    let (probes, claims) = (subjects::probes_in(region), subjects::claim("health-prober", region, "*"));
    let mut publish = vec![probes.clone(), claims.clone()];
    publish.extend(read_bucket(FLEET_BUCKET));
    user(
        format!("prober-{region}"),
        publish,
        vec![
            subjects::FLEET.to_owned(),
            subjects::ALL_SUSPICIONS.to_owned(),
            subjects::snapshot(&probes),
            claims,
        ],
        Some(MANY),
    )
}

/// It may not create or change streams: whoever may can have the server publish anything.
fn computer(region: &RegionName) -> User {
    let (routes, claims) = (subjects::routes(region), subjects::claim("route-computer", region, "*"));
    let key = subjects::routes_key(region);
    user(
        format!("computer-{region}"),
        vec![
            routes.clone(),
            subjects::events_in(region),
            claims.clone(),
            format!("$KV.{ROUTES_BUCKET}.{key}"),
            format!("$KV.{ROUTES_BUCKET}.{key}.>"),
            format!("$KV.{LEASE_BUCKET}.{region}"),
            subjects::snapshot(subjects::ALL_PROBES),
            "$JS.API.STREAM.INFO.*".to_owned(),
            format!("$JS.API.STREAM.PURGE.KV_{ROUTES_BUCKET}"),
            "$JS.API.DIRECT.GET.*.>".to_owned(),
        ],
        vec![
            subjects::FLEET.to_owned(),
            subjects::OVERRIDES.to_owned(),
            subjects::ALL_PROBES.to_owned(),
            subjects::ALL_LOAD.to_owned(),
            subjects::applied_in(region),
            subjects::snapshot(&routes),
            subjects::explain(region),
            subjects::what_if(region),
            claims,
        ],
        Some(MANY),
    )
}

fn replicator(region: &RegionName) -> User {
    let claims = subjects::claim("replicator", region, "*");
    let mut publish = vec![subjects::digest(region), subjects::ALL_PULLS.to_owned(), claims.clone()];
    publish.extend(write_decisions());
    user(
        format!("replicator-{region}"),
        publish,
        vec![
            subjects::FLEET.to_owned(),
            subjects::OVERRIDES.to_owned(),
            subjects::ALL_DIGESTS.to_owned(),
            subjects::pull(region),
            claims,
        ],
        Some(MANY),
    )
}

fn operator() -> User {
    let mut publish = vec![
        subjects::snapshot(subjects::ALL_ROUTES),
        format!("{}.*", subjects::EXPLAIN),
        format!("{}.*", subjects::WHAT_IF),
        subjects::ALL_RESETS.to_owned(),
    ];
    publish.extend(write_decisions());
    // The history.
    publish.extend([
        format!("$JS.API.CONSUMER.CREATE.{EVENT_STREAM}"),
        format!("$JS.API.CONSUMER.*.{EVENT_STREAM}.>"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{EVENT_STREAM}.>"),
    ]);
    let subscribe = [
        subjects::ALL_APPLIED,
        subjects::ALL_LOAD,
        subjects::ALL_CLAIMS,
        subjects::ALL_ROUTES,
        subjects::FLEET,
    ];
    user("operator".to_owned(), publish, subscribe.map(str::to_owned).into(), None)
}

/// The permissions to read a bucket.
fn read_bucket(bucket: &str) -> [String; 2] {
    [format!("$JS.API.STREAM.INFO.KV_{bucket}"), format!("$JS.API.DIRECT.GET.KV_{bucket}.>")]
}

/// The permissions to write what operators decide, and to create streams.
fn write_decisions() -> Vec<String> {
    vec![
        subjects::FLEET.to_owned(),
        subjects::OVERRIDES.to_owned(),
        format!("$KV.{FLEET_BUCKET}.>"),
        format!("$KV.{OVERRIDES_BUCKET}.>"),
        "$JS.API.INFO".to_owned(),
        "$JS.API.STREAM.INFO.*".to_owned(),
        "$JS.API.STREAM.CREATE.*".to_owned(),
        "$JS.API.STREAM.UPDATE.*".to_owned(),
        format!("$JS.API.STREAM.PURGE.KV_{FLEET_BUCKET}"),
        format!("$JS.API.STREAM.PURGE.KV_{OVERRIDES_BUCKET}"),
        "$JS.API.DIRECT.GET.*.>".to_owned(),
    ]
}

/// Refuses users who would share a variable, and so a password: names may differ only in characters that it cannot hold.
fn check_variables(users: &[User]) -> Result<(), WrongArgument> {
    let mut taken: BTreeMap<String, &str> = BTreeMap::new();
    for User { name, .. } in users {
        let variable = variable(name);
        if let Some(other) = taken.insert(variable.clone(), name) {
            return Err(WrongArgument(format!(
                "the users {other} and {name} would share the password {variable}: rename one of them in the fleet, or give each a \
                 password of its own (--passwords)"
            )));
        }
    }
    Ok(())
}

/// The variable of a user's password.
fn variable(user: &str) -> String {
    format!("$NATS_{}_PASSWORD", user.replace('-', "_").to_uppercase())
}

/// The password of a user in `folder`: of `edges/<user>` or `<user>`. A random one where the file does not exist.
fn password(folder: &Path, user: &str) -> anyhow::Result<String> {
    let folder = if user.starts_with("edge-") { folder.join("edges") } else { folder.to_owned() };
    let file = folder.join(user);
    let shown = || file.display().to_string();
    match fs::read_to_string(&file) {
        Ok(text) => {
            let password = text.trim_end();
            let is_plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
            anyhow::ensure!(
                !password.is_empty() && password.chars().all(is_plain),
                "{}: a password has letters, digits and signs other than quotation marks and backslashes",
                shown()
            );
            Ok(password.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let password = format!("{:032x}", rand::random::<u128>());
            write_private(&folder, &file, &password)
                .with_context(|| format!("{} cannot be written", shown()))?;
            Ok(password)
        }
        Err(error) => Err(error).with_context(shown),
    }
}

fn write_private(folder: &Path, file: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::create_dir_all(folder)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: &str = "
regions: { us: {}, eu: {} }
clusters: { a: { region: us, endpoints: [\"127.0.0.1:1\"] } }
edges: { e-1: { region: us, listeners: [web] }, e-2: { region: eu, listeners: [web] } }
listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }
services: { site: { hosts: [\"*\"], clusters: [a] } }
";

    fn fleet() -> Fleet {
        Fleet::parse(FLEET, "fleet.yaml").unwrap()
    }

    /// The text about one user.
    fn rights(text: &str, user: &str) -> String {
        let start = text.find(&format!("user: \"{user}\"")).unwrap_or_else(|| panic!("no {user} in {text}"));
        let rest = &text[start..];
        rest[..rest[1..].find("user: ").map_or(rest.len(), |end| end + 1)].to_owned()
    }

    #[test]
    fn an_edge_may_speak_for_itself_only() {
        let text = text(&fleet(), None, |user| Ok(variable(user))).unwrap();
        let rights = rights(&text, "edge-e-1");
        for subject in [
            "suspect.us.e-1.*",
            "applied.us.e-1",
            "load.us.e-1",
            "event.us.e-1",
            "claim.edge.us.e-1",
            "reset.us.e-1",
            "routes.us",
            "routes.us.snapshot",
        ] {
            assert!(rights.contains(&format!("\"tidegate.v1.{subject}\"")), "{subject}\n{rights}");
        }
        assert!(!rights.contains(".*.*") && rights.contains("$NATS_EDGE_E_1_PASSWORD"), "{rights}");
        assert!(rights.contains("\"_INBOX.tidegate.edge-e-1.>\""), "{rights}");
    }

    #[test]
    fn only_operators_and_replicators_may_write_what_operators_decide_or_make_streams() {
        for user in users(&fleet(), None) {
            let may = |what: &str| user.publish.iter().any(|subject| subject.contains(what));
            let is_trusted = user.name == "operator" || user.name.starts_with("replicator-");
            for what in ["$KV.tidegate-fleet", "$KV.tidegate-overrides", "STREAM.CREATE", "STREAM.UPDATE"] {
                assert_eq!(may(what), is_trusted, "{} {what}", user.name);
            }
            assert!(user.subscribe.contains(&format!("_INBOX.tidegate.{}.>", user.name)), "{}", user.name);
            // No user may reply for others, or receive others' replies.
            assert!(!may("_INBOX") && !user.subscribe.iter().any(|subject| subject.starts_with("_INBOX.>")));
            assert!(!user.publish.iter().chain(&user.subscribe).any(|subject| subject == ">"));
        }
    }

    #[test]
    fn only_operators_ask_what_would_be_and_only_the_regions_route_computers_hear_it() {
        let asked = subjects::what_if(&"us".parse().unwrap());
        for User { name, publish, subscribe, .. } in users(&fleet(), None) {
            let covers = |patterns: &[String]| {
                patterns
                    .iter()
                    .any(|pattern| *pattern == asked || *pattern == format!("{}.*", subjects::WHAT_IF))
            };
            assert_eq!(covers(&publish), name == "operator", "{name}");
            assert_eq!(covers(&subscribe), name == "computer-us", "{name}");
        }
    }

    #[test]
    fn a_regions_server_lets_in_its_own_services() {
        let text = text(&fleet(), Some(&"eu".parse().unwrap()), |user| Ok(variable(user))).unwrap();
        for user in ["edge-e-2", "prober-eu", "computer-eu", "replicator-eu", "operator"] {
            rights(&text, user);
        }
        assert!(!text.contains("edge-e-1") && !text.contains("-us\""), "{text}");
    }

    #[test]
    fn users_who_would_share_a_variable_are_refused() {
        let checked = |first: &str, second: &str| {
            let text = FLEET.replace("e-1:", &format!("{first}:")).replace("e-2:", &format!("{second}:"));
            check_variables(&users(&Fleet::parse(&text, "fleet.yaml").unwrap(), None))
        };
        assert!(checked("a-b", "a-c").is_ok());
        for (first, second) in [("a-b", "a_b"), ("A-b", "a-b")] {
            let refused = checked(first, second).unwrap_err().to_string();
            for part in
                [format!("edge-{first}"), format!("edge-{second}"), "$NATS_EDGE_A_B_PASSWORD".to_owned()]
            {
                assert!(refused.contains(&part), "{refused}");
            }
        }
    }

    #[test]
    fn passwords_are_made_once() {
        let folder = std::env::temp_dir().join(format!("tidegate-passwords-{}", std::process::id()));
        let first = password(&folder, "edge-e-1").unwrap();
        assert_eq!(password(&folder, "edge-e-1").unwrap(), first);
        assert_eq!(fs::read_to_string(folder.join("edges/edge-e-1")).unwrap(), first);
        assert_ne!(password(&folder, "operator").unwrap(), first);
        fs::write(folder.join("operator"), "with \"quotes\"").unwrap();
        assert!(password(&folder, "operator").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_permissions_of_the_compose_file_are_those_of_its_fleet() {
        let fleet = Fleet::parse(include_str!("../../../deploy/fleet.yaml"), "fleet.yaml").unwrap();
        for (region, kept) in [
            ("us-east", include_str!("../../../deploy/nats/us-east.conf")),
            ("eu-west", include_str!("../../../deploy/nats/eu-west.conf")),
        ] {
            let printed = text(&fleet, Some(&region.parse().unwrap()), |user| Ok(variable(user))).unwrap();
            assert_eq!(
                printed, kept,
                "deploy/nats/{region}.conf: tidegate bus-permissions deploy/fleet.yaml --region {region}"
            );
        }
    }
}
