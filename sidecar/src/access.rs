//! The secret.

use crate::config::Config;
use crate::error::Error;
use crate::query::Query;

/// Refuses a request that does not carry the configured secret.
pub fn authorize(config: &Config, query: &Query) -> Result<(), Error> {
    let Some(secret) = &config.secret else {
        return Ok(());
    };
    let given = query.get("secret").or_else(|| query.get("api_secret"));
    match given {
        Some(Ok(given)) if same(given.as_bytes(), secret.as_bytes()) => Ok(()),
        _ => Err(Error::Unauthorized),
    }
}

/// Compares in a time that tells nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn the_secret_opens() {
        let config = Config::parse_from(["sidecar", "--secret", "s3"]);
        let opens = |text| authorize(&config, &Query::parse(text)).is_ok();
        assert!(opens("secret=s3") && opens("api_secret=s3"));
        assert!(
            !opens("")
                && !opens("secret=s4")
                && !opens("secret=&api_secret=s3")
                && !opens("secret=%ff")
        );
        let open = Config::parse_from(["sidecar", "--insecure"]);
        assert!(authorize(&open, &Query::parse("")).is_ok());
    }
}
