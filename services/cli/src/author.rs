//! The author of a change: who runs this command.

use std::{fs, os::unix::fs::MetadataExt as _};

use crate::arguments::BusOptions;

/// The author: as given, or the user's name, or the user of the bus, or the user of this process with the host's name.
pub fn author(given: Option<String>, bus: &BusOptions) -> String {
    let [user, logname] = login_names();
    first_of([given, user, logname, bus.nats_user.clone()]).unwrap_or_else(process_user)
}

/// The author of what needs no bus.
pub fn process_author() -> String {
    first_of(login_names()).unwrap_or_else(process_user)
}

fn login_names() -> [Option<String>; 2] {
    ["USER", "LOGNAME"].map(|name| std::env::var(name).ok())
}

fn first_of(names: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    names.into_iter().flatten().map(|name| name.trim().to_owned()).find(|name| !name.is_empty())
}

/// The user of this process and the host, such as `ann@laptop` or `uid-1000@laptop`.
fn process_user() -> String {
    let id = fs::metadata("/proc/self").map_or(0, |own| own.uid());
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = name_of(id, &users).unwrap_or_else(|| format!("uid-{id}"));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}

/// The name of a user in the text of `/etc/passwd`.
fn name_of(id: u32, users: &str) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id) && !name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_that_is_not_empty_is_taken() {
        let name = |text: &str| Some(text.to_owned());
        assert_eq!(first_of([name(""), None, name(" "), name("ann "), name("bob")]), name("ann"));
        assert_eq!(first_of([None, name("")]), None);
    }

    #[test]
    fn a_process_has_a_user_and_a_host() {
        let users = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_of(1000, users), Some("ann".to_owned()));
        assert_eq!(name_of(1001, users), None);
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert!(process_user().ends_with(host.trim()) && process_user() != host.trim());
    }
}
