//! What README and the pages in docs say of options is so.

use std::{collections::BTreeSet, path::Path};

use tidegate_integration_tests::binaries;

const SERVICES: [&str; 4] =
    ["tidegate-proxy", "tidegate-route-computer", "tidegate-health-prober", "tidegate-replicator"];

/// Options of docker compose and of our measurements.
const OF_OTHERS: [&str; 3] = ["profile", "instructions", "signed"];

fn help(binary: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = binaries::command(binary)?.args(arguments).arg("--help").output()?;
    anyhow::ensure!(output.status.success(), "{binary} {arguments:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Each `--option` in a text.
fn options(text: &str) -> BTreeSet<String> {
    let is_name =
        |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
    text.match_indices("--")
        .filter_map(|(at, _)| {
            let rest = &text[at + 2..];
            let name = &rest[..rest.find(|character| !is_name(character)).unwrap_or(rest.len())];
            let begins = text[..at].ends_with([' ', '`', '(', '[', '\n']);
            (begins && name.starts_with(|first: char| first.is_ascii_lowercase())).then(|| name.to_owned())
        })
        .collect()
}

#[test]
fn every_option_on_a_page_exists() {
    let mut known: BTreeSet<String> =
        SERVICES.iter().flat_map(|binary| options(&help(binary, &[]).unwrap())).collect();
    let list = help("tidegate", &[]).unwrap();
    let commands =
        list.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    for command in commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        known.extend(options(&help("tidegate", &[command]).unwrap()));
        let of_command: &[&str] = match command {
            "drain" | "undrain" => &["cluster", "edge", "region"],
            "fleet" => &["get", "diff", "history", "rollback"],
            _ => &[],
        };
        for subcommand in of_command {
            known.extend(options(&help("tidegate", &[command, subcommand]).unwrap()));
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for page in pages.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        // Options of other programs are in lines of their own, or with the program's name.
        let ours = text
            .lines()
            .filter(|line| !["docker", "cargo", "kubectl", "make "].iter().any(|other| line.contains(other)));
        let named = options(&ours.collect::<Vec<_>>().join("\n"));
        let unknown: Vec<&String> =
            named.difference(&known).filter(|name| !OF_OTHERS.contains(&name.as_str())).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", page.display());
    }
}
