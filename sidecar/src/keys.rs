//! Keys that tokens are verified with: a secret, PEM files, a key set in a file or behind a URL that is read again when
//! keys rotate. An algorithm belongs to a key, never to a token.

use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::Mutex;

use crate::config::Config;
use crate::fetch::fetch;

/// Shorter secrets can be guessed.
const LEAST_SECRET_BYTES: usize = 32;
/// A key set is read again after this long,
const READ_AGAIN: Duration = Duration::from_secs(300);
/// and when a token names a key that is not in it, but not more often than this.
const LEAST_INTERVAL: Duration = Duration::from_secs(5);

/// A key.
pub struct Key {
    kid: Option<String>,
    /// The only algorithm that it is used with.
    pub algorithm: Algorithm,
    /// The key itself.
    pub key: DecodingKey,
}

impl Key {
    /// Whether a token with this header may be signed by it.
    pub fn may_have_signed(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let same = match (&self.kid, kid) {
            (Some(own), Some(kid)) => own == kid,
            _ => true,
        };
        same && self.algorithm == algorithm
    }

    fn of(algorithm: Algorithm, key: DecodingKey) -> Key {
        let kid = None;
        Key {
            kid,
            algorithm,
            key,
        }
    }
}

/// All of them.
pub struct Keys {
    fixed: Vec<Arc<Key>>,
    set: Option<KeySet>,
}

/// A key set that may change.
struct KeySet {
    source: String,
    keys: RwLock<Vec<Arc<Key>>>,
    /// When it was read last; held while it is.
    read_at: Mutex<Option<Instant>>,
}

impl Keys {
    /// As configured; `None` if there are none.
    pub fn new(config: &Config) -> Result<Option<Keys>, Box<dyn std::error::Error>> {
        let mut fixed = Vec::new();
        if let Some(secret) = &config.jwt_secret {
            if secret.len() < LEAST_SECRET_BYTES {
                return Err(
                    format!("--jwt-secret must have {LEAST_SECRET_BYTES} bytes or more").into(),
                );
            }
            let key = DecodingKey::from_secret(secret.as_bytes());
            fixed.push(Arc::new(Key::of(Algorithm::HS256, key)));
        }
        for file in &config.jwt_public_key {
            fixed.push(Arc::new(of_pem(file)?));
        }
        let set = config.jwt_jwks.clone().map(|source| KeySet {
            source,
            keys: RwLock::default(),
            read_at: Mutex::default(),
        });
        let some = !fixed.is_empty() || set.is_some();
        Ok(some.then_some(Keys { fixed, set }))
    }

    /// Those that are known.
    pub fn known(&self) -> Vec<Arc<Key>> {
        let set = self.set.iter();
        let rotating = set.flat_map(|set| set.keys.read().expect("no panic while held").clone());
        self.fixed.iter().cloned().chain(rotating).collect()
    }

    /// Those that there are now.
    pub async fn newest(&self) -> Vec<Arc<Key>> {
        if let Some(set) = &self.set {
            set.refresh(LEAST_INTERVAL).await;
        }
        self.known()
    }

    /// Reads the key set from time to time.
    pub async fn follow(&self) {
        let Some(set) = &self.set else { return };
        loop {
            set.refresh(READ_AGAIN).await;
            tokio::time::sleep(READ_AGAIN / 10).await;
        }
    }
}

impl KeySet {
    /// Reads it unless that was done less than `age` ago. What cannot be read leaves the keys as they were.
    async fn refresh(&self, age: Duration) {
        let mut read_at = self.read_at.lock().await;
        let is_empty = self.keys.read().expect("no panic while held").is_empty();
        let age = if is_empty {
            LEAST_INTERVAL.min(age)
        } else {
            age
        };
        if read_at.is_some_and(|at| at.elapsed() < age) {
            return;
        }
        *read_at = Some(Instant::now());
        match read(&self.source).await {
            Ok(keys) => *self.keys.write().expect("no panic while held") = keys,
            Err(error) => tracing::error!(%error, "the set of keys for tokens cannot be read"),
        }
    }
}

async fn read(source: &str) -> Result<Vec<Arc<Key>>, Box<dyn std::error::Error + Send + Sync>> {
    let text = if source.starts_with("http://") || source.starts_with("https://") {
        fetch(source).await?
    } else {
        std::fs::read(source)?.into()
    };
    // Keys of kinds that are not known here do not make the others useless.
    let set: serde_json::Value = serde_json::from_slice(&text)?;
    let all = set["keys"].as_array().ok_or("no array of keys")?;
    let keys = all
        .iter()
        .filter_map(|key| serde_json::from_value(key.clone()).ok());
    Ok(of_set(&JwkSet {
        keys: keys.collect(),
    }))
}

fn of_set(set: &JwkSet) -> Vec<Arc<Key>> {
    set.keys.iter().filter_map(of_jwk).map(Arc::new).collect()
}

fn of_jwk(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return None,
    };
    let meant_for = jwk
        .common
        .key_algorithm
        .map(|algorithm| algorithm.to_string());
    let is_other = meant_for.is_some_and(|name| name != format!("{algorithm:?}"));
    let encrypts = jwk.common.public_key_use == Some(PublicKeyUse::Encryption);
    if is_other || encrypts {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let kid = jwk.common.key_id.clone();
    Some(Key {
        kid,
        algorithm,
        key,
    })
}

fn of_pem(file: &Path) -> Result<Key, Box<dyn std::error::Error>> {
    let pem = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let kinds = [
        (Algorithm::RS256, DecodingKey::from_rsa_pem(&pem)),
        (Algorithm::ES256, DecodingKey::from_ec_pem(&pem)),
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(&pem)),
    ];
    let known = kinds
        .into_iter()
        .find_map(|(algorithm, key)| Some(Key::of(algorithm, key.ok()?)));
    let what = || {
        format!(
            "{}: no RSA, P-256 or Ed25519 public key in PEM",
            file.display()
        )
    };
    known.ok_or_else(|| what().into())
}
