//! The environment variables that the command reads.

use clap::CommandFactory as _;
use tidegate_service::settings::{SettingsError, check_variables};

use crate::arguments::Arguments;

/// Refuses misspelt variables, as services do.
///
/// # Errors
/// The first misspelt variable.
pub fn check(variables: impl IntoIterator<Item = (String, String)>) -> Result<(), SettingsError> {
    let command = Arguments::command();
    let known = known(&command);
    check_variables(known.iter().map(String::as_str), variables)
}

/// The variables of a command and its subcommands.
fn known(command: &clap::Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
    own.chain(command.get_subcommands().flat_map(known)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_variables_are_refused() {
        let check = |name: &str| check([(name.to_owned(), "x".to_owned())]);
        for good in
            ["TIDEGATE_NATS__SERVERS", "TIDEGATE_NATS__TOKEN", "TIDEGATE_AUTHOR", "TIDEGATE_VERSION", "HOME"]
        {
            assert!(check(good).is_ok(), "{good}");
        }
        let error = check("TIDEGATE_NATS__PASSWROD").unwrap_err().to_string();
        assert!(error.contains("did you mean TIDEGATE_NATS__PASSWORD?"), "{error}");
    }
}
