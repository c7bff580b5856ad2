//! Settings under the names that Electric's sync service has for them, where they mean the same: whoever moves here keeps
//! the environment. A name of our own, and a flag, say more (docs/migrating.md).

use clap::{Command, CommandFactory};

use crate::config::Config;

/// Their name, ours, and what a value of theirs is here.
type Alias = (&'static str, &'static str, fn(&str) -> Option<String>);

const ALIASES: [Alias; 12] = [
    ("ELECTRIC_PORT", "port", same),
    ("ELECTRIC_SECRET", "secret", same),
    ("ELECTRIC_INSECURE", "insecure", same),
    ("ELECTRIC_LONG_POLL_TIMEOUT", "long_poll_timeout_ms", same),
    ("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "chunk_bytes", same),
    ("ELECTRIC_CACHE_MAX_AGE", "cache_max_age", same),
    ("ELECTRIC_CACHE_STALE_AGE", "cache_stale_age", same),
    ("ELECTRIC_DB_POOL_SIZE", "pool_size", same),
    ("ELECTRIC_ENABLE_INTEGRATION_TESTING", "allow_delete", same),
    ("ELECTRIC_LOG_LEVEL", "log_level", level),
    (
        "ELECTRIC_MAX_CONCURRENT_REQUESTS",
        "max_concurrent_initial",
        |text| concurrent(text, "initial"),
    ),
    (
        "ELECTRIC_MAX_CONCURRENT_REQUESTS",
        "max_concurrent_existing",
        |text| concurrent(text, "existing"),
    ),
];

fn same(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn level(text: &str) -> Option<String> {
    Some(match text {
        "emergency" | "alert" | "critical" => "error".into(),
        "warning" => "warn".into(),
        "notice" => "info".into(),
        other => other.to_owned(),
    })
}

fn concurrent(text: &str, kind: &str) -> Option<String> {
    let limits: serde_json::Value = serde_json::from_str(text).ok()?;
    limits.get(kind)?.as_u64().map(|limit| limit.to_string())
}

/// The command line, with their names as defaults.
pub fn command() -> Command {
    with_defaults(|name| std::env::var(name).ok())
}

fn with_defaults(environment: impl Fn(&str) -> Option<String>) -> Command {
    let mut command = Config::command();
    for (theirs, ours, read) in ALIASES {
        let value = environment(theirs).filter(|text| !text.is_empty());
        if let Some(value) = value.and_then(|text| read(&text)) {
            // Read once, when the process starts.
            let value: &'static str = value.leak();
            command = command.mut_arg(ours, |arg| {
                arg.default_value(value).hide_default_value(true)
            });
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn config(environment: &[(&str, &str)], flags: &[&str]) -> Config {
        let command = with_defaults(|name| {
            let found = environment.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        let flags = ["sidecar"].iter().chain(flags);
        Config::from_arg_matches(&command.try_get_matches_from(flags).unwrap()).unwrap()
    }

    #[test]
    fn their_names_count() {
        let it = config(
            &[
                ("ELECTRIC_PORT", "4000"),
                ("ELECTRIC_SECRET", "s3"),
                ("ELECTRIC_LONG_POLL_TIMEOUT", "1000"),
                ("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "10000"),
                ("ELECTRIC_CACHE_MAX_AGE", "1"),
                ("ELECTRIC_CACHE_STALE_AGE", "3"),
                ("ELECTRIC_DB_POOL_SIZE", "20"),
                ("ELECTRIC_ENABLE_INTEGRATION_TESTING", "true"),
                ("ELECTRIC_LOG_LEVEL", "warning"),
                (
                    "ELECTRIC_MAX_CONCURRENT_REQUESTS",
                    r#"{"initial": 5, "existing": 7}"#,
                ),
            ],
            &[],
        );
        assert_eq!(
            (it.address().port(), it.secret.as_deref()),
            (4000, Some("s3"))
        );
        assert_eq!((it.long_poll_timeout_ms, it.chunk_bytes), (1000, 10_000));
        assert_eq!(
            (it.cache_max_age, it.cache_stale_age, it.pool_size),
            (1, 3, 20)
        );
        assert_eq!(
            (it.max_concurrent_initial, it.max_concurrent_existing),
            (5, 7)
        );
        assert!(it.allow_delete && !it.insecure && it.log_level == "warn");
        assert!(config(&[("ELECTRIC_INSECURE", "true")], &[]).insecure);
    }

    #[test]
    fn ours_say_more() {
        let theirs = [("ELECTRIC_PORT", "4000"), ("ELECTRIC_CACHE_MAX_AGE", "")];
        let it = config(&theirs, &["--port", "5000"]);
        assert_eq!((it.port, it.cache_max_age), (Some(5000), 60));
        let half = [("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial": 5}"#)];
        let it = config(&half, &[]);
        assert_eq!(
            (it.max_concurrent_initial, it.max_concurrent_existing),
            (5, 10_000)
        );
    }
}
