//! Tokens: who a request is made as (docs/access.md). A JWT that one of the configured keys has signed names a role, and
//! its claims become settings that policies of row-level security read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::config::Config;
use crate::error::Error;
use crate::keys::{Key, Keys};
use crate::params::Caller;

/// Settings that hold a caller's claims: all as an object, and each by itself.
const CLAIMS: &str = "request.jwt.claims";
const CLAIM: &str = "request.jwt.claim.";
/// What a token may say that it is: RFC 7519, RFC 9068.
const KINDS: [&str; 2] = ["jwt", "at+jwt"];
/// The longest token that is looked at.
const LONGEST: usize = 16 << 10;

/// Who a request is made as, and until when.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// What the database is told.
    pub caller: Caller,
    /// The request carried a token: nobody else may be shown the answer.
    pub is_private: bool,
    /// When the token is good no more.
    pub expires: Option<Instant>,
}

/// Knows callers by their tokens.
pub struct Tokens {
    keys: Keys,
    validation: Validation,
    role_claim: Vec<String>,
    roles: Vec<String>,
    anonymous: Option<String>,
}

impl Tokens {
    /// As configured; `None` if callers are not told apart.
    pub fn new(config: &Config) -> Result<Option<Tokens>, Box<dyn std::error::Error>> {
        let Some(keys) = Keys::new(config)? else {
            return Ok(None);
        };
        let mut validation = Validation::default();
        validation.leeway = config.jwt_leeway;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        let mut required = vec!["exp"];
        if !config.jwt_audience.is_empty() {
            validation.validate_aud = true;
            validation.set_audience(&config.jwt_audience);
            required.push("aud");
        }
        if !config.jwt_issuer.is_empty() {
            validation.set_issuer(&config.jwt_issuer);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Ok(Some(Tokens {
            keys,
            validation,
            role_claim: config
                .jwt_role_claim
                .split('.')
                .map(str::to_owned)
                .collect(),
            roles: config.roles.clone(),
            anonymous: config.anonymous_role.clone(),
        }))
    }

    /// Reads keys that rotate from time to time.
    pub async fn follow_keys(&self) {
        self.keys.follow().await;
    }

    /// Who a request with these headers is made as.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Identity, Error> {
        let mut given = headers.get_all(header::AUTHORIZATION).into_iter();
        let Some(authorization) = given.next() else {
            let role = self.anonymous.as_ref().ok_or(Error::InvalidToken)?;
            let caller = caller(role, Map::new());
            return Ok(Identity {
                caller,
                ..Identity::default()
            });
        };
        let token = authorization.to_str().ok().and_then(bearer);
        let token = token.filter(|token| token.len() <= LONGEST && given.next().is_none());
        let claims = self.verify(token.ok_or(Error::InvalidToken)?).await?;
        let expires = claims.get("exp").and_then(Value::as_f64);
        let expires = expires.map(|exp| at(exp + self.validation.leeway as f64));
        // What verifies it counts whole seconds.
        if expires.is_none_or(|expires| expires <= Instant::now()) {
            return Err(Error::InvalidToken);
        }
        let role = self.role(&claims)?;
        Ok(Identity {
            caller: caller(role, claims),
            is_private: true,
            expires,
        })
    }

    /// The claims of a token that is good.
    async fn verify(&self, token: &str) -> Result<Map<String, Value>, Error> {
        let header = decode_header(token).map_err(|_| Error::InvalidToken)?;
        if !is_plain(token) {
            return Err(Error::InvalidToken);
        }
        let kid = header.kid.as_deref();
        let mut keys = self.keys.known();
        if !keys.iter().any(|key| key.may_have_signed(kid, header.alg)) {
            keys = self.keys.newest().await;
        }
        let fitting = keys
            .iter()
            .filter(|key| key.may_have_signed(kid, header.alg));
        fitting
            .filter_map(|key| self.check(token, key))
            .next()
            .ok_or(Error::InvalidToken)
    }

    /// The algorithm is that of the key, whatever the token says.
    fn check(&self, token: &str, key: &Key) -> Option<Map<String, Value>> {
        let mut validation = self.validation.clone();
        validation.algorithms = vec![key.algorithm];
        let claims = decode(token, &key.key, &validation);
        claims.ok().map(|token| token.claims)
    }

    /// The role that the claims name, which must be one of those that tokens may name; without one the anonymous role.
    fn role(&self, claims: &Map<String, Value>) -> Result<&str, Error> {
        let mut parts = self.role_claim.iter();
        let first = parts.next().and_then(|name| claims.get(name));
        let claim = parts.fold(first, |claim, name| claim.and_then(|claim| claim.get(name)));
        let Some(claim) = claim.filter(|claim| !claim.is_null()) else {
            return self.anonymous.as_deref().ok_or(Error::InvalidToken);
        };
        let named = self.roles.iter().find(|role| claim.as_str() == Some(role));
        named.map(String::as_str).ok_or(Error::ForbiddenRole)
    }
}

/// Whether a token wants nothing of us but to be looked at: nothing that must be understood (`crit`, RFC 7515, 4.1.11), and it
/// is not of a kind that is meant for something else, as one that ends a session (`typ`, RFC 8725, 3.11).
fn is_plain(token: &str) -> bool {
    let header = token.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).ok();
    let header: Option<Map<String, Value>> =
        header.and_then(|header| serde_json::from_slice(&header).ok());
    header.is_some_and(|header| {
        let kind = header.get("typ").map(|kind| kind.as_str().unwrap_or(""));
        let kind = kind.map(str::to_ascii_lowercase);
        let kind = kind
            .as_deref()
            .map(|kind| kind.trim_start_matches("application/"));
        !header.contains_key("crit") && kind.is_none_or(|kind| KINDS.contains(&kind))
    })
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A moment of the wall clock; what is too far away is so far as one can see.
fn at(unix_s: f64) -> Instant {
    const FAR: f64 = 10.0 * 365.0 * 86400.0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let left = unix_s - now.map_or(0.0, |now| now.as_secs_f64());
    Instant::now() + Duration::from_secs_f64(left.clamp(0.0, FAR))
}

fn caller(role: &str, mut claims: Map<String, Value>) -> Caller {
    // What policies are told is what the database acts as, whichever claim said so.
    claims.insert("role".into(), role.into());
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    // Names of settings ignore case: `SUB` must not stand for a `sub` that is not there.
    let is_lower = |name: &str| !name.contains(|c: char| c.is_ascii_uppercase());
    let mut settings: Map<String, Value> = claims
        .iter()
        .filter(|(name, value)| !value.is_null() && is_lower(name))
        .map(|(name, value)| (format!("{CLAIM}{name}"), text(value).into()))
        .collect();
    settings.insert(CLAIMS.into(), Value::Object(claims).to_string().into());
    Caller {
        role: Some(role.to_owned()),
        settings: Some(Value::Object(settings).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use serde_json::json;

    const SECRET: &str = "an-hs256-secret-of-at-least-32-bytes";

    fn tokens(flags: &[&str]) -> Tokens {
        let given = [
            "sidecar",
            "--insecure",
            "--jwt-secret",
            SECRET,
            "--roles",
            "app,admin",
        ];
        let config = Config::parse_from(given.iter().chain(flags));
        Tokens::new(&config).unwrap().unwrap()
    }

    fn now() -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    }

    fn signed(claims: Value, secret: &str, algorithm: Algorithm) -> HeaderMap {
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = encode(&Header::new(algorithm), &claims, &key).unwrap();
        HeaderMap::from_iter([(
            header::AUTHORIZATION,
            format!("Bearer {token}").parse().unwrap(),
        )])
    }

    async fn role_of(tokens: &Tokens, claims: Value) -> Result<String, String> {
        let headers = signed(claims, SECRET, Algorithm::HS256);
        let identity = tokens.identify(&headers).await;
        identity
            .map(|identity| identity.caller.role.unwrap())
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_role_must_be_allowed_and_a_time_right() {
        let tokens = tokens(&["--jwt-leeway", "5"]);
        let later = now() + 60;
        let good = role_of(&tokens, json!({"role": "app", "exp": later})).await;
        assert_eq!(good.as_deref(), Ok("app"));
        for claims in [
            json!({"role": "postgres", "exp": later}),
            json!({"role": ["app"], "exp": later}),
            json!({"role": "APP", "exp": later}),
            json!({"exp": later}),
            json!({"role": "app"}),
            json!({"role": "app", "exp": now() - 6}),
            json!({"role": "app", "exp": later, "nbf": later}),
        ] {
            assert!(role_of(&tokens, claims.clone()).await.is_err(), "{claims}");
        }
        let late = role_of(&tokens, json!({"role": "app", "exp": now() - 2})).await;
        assert!(late.is_ok(), "within the leeway");
    }

    #[tokio::test]
    async fn audiences_and_issuers() {
        let tokens = tokens(&["--jwt-audience", "a,b", "--jwt-issuer", "i"]);
        let later = now() + 60;
        let of =
            |aud: Value, iss: Value| json!({"role": "app", "exp": later, "aud": aud, "iss": iss});
        assert!(role_of(&tokens, of(json!("b"), json!("i"))).await.is_ok());
        assert!(
            role_of(&tokens, of(json!(["x", "a"]), json!("i")))
                .await
                .is_ok()
        );
        assert!(role_of(&tokens, of(json!("x"), json!("i"))).await.is_err());
        assert!(role_of(&tokens, of(json!("a"), json!("j"))).await.is_err());
        let without = json!({"role": "app", "exp": later});
        assert!(role_of(&tokens, without).await.is_err());
    }

    #[tokio::test]
    async fn other_keys_and_algorithms_are_none() {
        let tokens = tokens(&[]);
        let claims = json!({"role": "app", "exp": now() + 60});
        for (secret, algorithm) in [
            ("another secret of more than 32 bytes", Algorithm::HS256),
            (SECRET, Algorithm::HS384),
            (SECRET, Algorithm::HS512),
        ] {
            let headers = signed(claims.clone(), secret, algorithm);
            assert!(tokens.identify(&headers).await.is_err());
        }
    }

    #[tokio::test]
    async fn nobody_is_anonymous_unless_there_is_a_role_for_it() {
        let none = HeaderMap::new();
        assert!(tokens(&[]).identify(&none).await.is_err());
        let tokens = tokens(&["--anonymous-role", "anon"]);
        let identity = tokens.identify(&none).await.unwrap();
        assert_eq!(identity.caller.role.as_deref(), Some("anon"));
        assert!(!identity.is_private);
        let basic = HeaderMap::from_iter([(header::AUTHORIZATION, "Basic x".parse().unwrap())]);
        assert!(tokens.identify(&basic).await.is_err());
    }

    #[test]
    fn claims_become_settings() {
        let claims = json!({"sub": "7", "n": 1, "o": {"a": [null]}});
        let Value::Object(claims) = claims else {
            unreachable!()
        };
        let settings: Value =
            serde_json::from_str(&caller("app", claims).settings.unwrap()).unwrap();
        assert_eq!(settings["request.jwt.claim.sub"], "7");
        assert_eq!(settings["request.jwt.claim.n"], "1");
        assert_eq!(settings["request.jwt.claim.o"], "{\"a\":[null]}");
        let all: Value = serde_json::from_str(settings[CLAIMS].as_str().unwrap()).unwrap();
        assert_eq!((&all["role"], &all["sub"]), (&json!("app"), &json!("7")));
    }
}
