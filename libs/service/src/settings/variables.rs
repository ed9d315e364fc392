//! The environment of a program that reads single variables rather than all settings.

use super::{NOT_SETTINGS, NatsSection, SettingsError, keys};

/// Refuses misspelt variables: a variable with the prefix of settings whose name is similar to a known one, or that is in the
/// section of the bus and unknown there. Known are `own` and what services read. Empty variables count as absent.
///
/// # Errors
/// The first misspelt variable, with the known one that is most similar.
pub fn check_variables<'a>(
    own: impl IntoIterator<Item = &'a str>,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(), SettingsError> {
    const SIMILAR: usize = 3;
    let mut known: Vec<String> = own.into_iter().map(str::to_owned).collect();
    let bus = keys::Keys::of(&NatsSection::default());
    known.extend(bus.iter().map(|(key, _)| keys::variable(&format!("nats.{key}"))));
    for (name, _) in variables.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !name.starts_with("TIDEGATE_") || NOT_SETTINGS.contains(&name.as_str()) || known.contains(&name) {
            continue;
        }
        let distance = |known: &String| strsim::damerau_levenshtein(known, &name);
        let nearest =
            known.iter().min_by_key(|known| distance(known)).filter(|known| distance(known) <= SIMILAR);
        if nearest.is_some() || name.starts_with("TIDEGATE_NATS__") {
            let origin = "the environment".to_owned();
            return Err(SettingsError::Unknown { origin, suggestion: nearest.cloned(), key: name });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_misspelt_variables_are_refused() {
        let check = |name: &str| {
            check_variables(
                ["TIDEGATE_AUTHOR", "TIDEGATE_NATS__SERVERS"],
                [(name.to_owned(), "x".to_owned())],
            )
        };
        for good in [
            "TIDEGATE_NATS__SERVERS",
            "TIDEGATE_NATS__PASSWORD_FILE",
            "TIDEGATE_NATS_SERVER",
            "TIDEGATE_VERSION",
            "PATH",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for (bad, meant) in [
            ("TIDEGATE_NATS__SERVRES", "; did you mean TIDEGATE_NATS__SERVERS?"),
            ("TIDEGATE_NATS_SERVERS", "; did you mean TIDEGATE_NATS__SERVERS?"),
            ("TIDEGATE_AUTOR", "; did you mean TIDEGATE_AUTHOR?"),
            ("TIDEGATE_NATS__CLUSTER_NAME", ""),
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert_eq!(error, format!("the environment: there is no setting {bad}{meant}"));
        }
        assert!(
            check_variables([], [("TIDEGATE_AUTOR".to_owned(), String::new())]).is_ok(),
            "an empty one is absent"
        );
    }
}
