//! Flags, and environment variables of the same names.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::caching::Ages;
use crate::pace::Limits;

/// Serves shapefeed's shapes over HTTP.
#[derive(Clone, Debug, Parser)]
#[command(name = "shapefeed-sidecar", version, about)]
pub struct Config {
    /// Postgres with the extension: a URL or key=value pairs. DATABASE_URL is understood too. Connects directly, not
    /// through a pooler that shares sessions.
    #[arg(long, env = "SHAPEFEED_DATABASE_URL", hide_env_values = true, default_value_t = database_url())]
    #[arg(hide_default_value = true)]
    pub database_url: String,

    /// Address to listen on.
    #[arg(long, env = "SHAPEFEED_LISTEN", default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,

    /// Port to listen on, instead of that of --listen.
    #[arg(long, env = "SHAPEFEED_PORT")]
    pub port: Option<u16>,

    /// Every request for a shape must carry `secret=<this>`.
    #[arg(long, env = "SHAPEFEED_SECRET", hide_env_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub secret: Option<String>,

    /// Serve without a secret.
    #[arg(
        long,
        env = "SHAPEFEED_INSECURE",
        default_value_t = false,
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub insecure: bool,

    /// Secret of tokens that are signed with HS256, of 32 bytes or more. With this or another key, callers are told apart by
    /// `Authorization: Bearer <JWT>`.
    #[arg(long, env = "SHAPEFEED_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,

    /// Public key of tokens: a file, PEM. RSA for RS256, P-256 for ES256, Ed25519 for EdDSA. Several are separated by commas.
    #[arg(long, env = "SHAPEFEED_JWT_PUBLIC_KEY", value_delimiter = ',')]
    pub jwt_public_key: Vec<PathBuf>,

    /// Set of keys (JWKS) of tokens: a file or URL, which is read again when keys rotate.
    #[arg(long, env = "SHAPEFEED_JWT_JWKS")]
    pub jwt_jwks: Option<String>,

    /// Audiences (`aud`) of which a token must have one, separated by commas.
    #[arg(long, env = "SHAPEFEED_JWT_AUDIENCE", value_delimiter = ',')]
    pub jwt_audience: Vec<String>,

    /// Issuers (`iss`) of which a token must have one, separated by commas.
    #[arg(long, env = "SHAPEFEED_JWT_ISSUER", value_delimiter = ',')]
    pub jwt_issuer: Vec<String>,

    /// Seconds by which the clocks of who makes tokens and of this machine may differ.
    #[arg(long, env = "SHAPEFEED_JWT_LEEWAY", default_value_t = 30)]
    pub jwt_leeway: u64,

    /// Claim that names the role: a name, or a path of names with dots.
    #[arg(long, env = "SHAPEFEED_JWT_ROLE_CLAIM", default_value = "role")]
    pub jwt_role_claim: String,

    /// Roles that tokens may name, separated by commas.
    #[arg(long, env = "SHAPEFEED_ROLES", value_delimiter = ',')]
    pub roles: Vec<String>,

    /// Role of requests without a token and of tokens without a role; if not given they get a 401.
    #[arg(long, env = "SHAPEFEED_ANONYMOUS_ROLE")]
    pub anonymous_role: Option<String>,

    /// Clients may ask for named shapes only.
    #[arg(
        long,
        env = "SHAPEFEED_NAMED_SHAPES_ONLY",
        default_value_t = false,
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub named_shapes_only: bool,

    /// Milliseconds that a live request is held.
    #[arg(long, env = "SHAPEFEED_LONG_POLL_TIMEOUT_MS", default_value_t = 20_000)]
    pub long_poll_timeout_ms: u64,

    /// Milliseconds after which a stream of events ends and its client comes again.
    #[arg(long, env = "SHAPEFEED_SSE_TIMEOUT_MS", default_value_t = 60_000)]
    pub sse_timeout_ms: u64,

    /// Bytes after which a chunk of a snapshot or of the log is closed. The first of several chunks of a snapshot is closed after 1 MiB.
    #[arg(long, env = "SHAPEFEED_CHUNK_BYTES", default_value_t = 10_485_760)]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=1_073_741_824))]
    pub chunk_bytes: i64,

    /// Seconds that caches may keep answers to requests that do not wait.
    #[arg(long, env = "SHAPEFEED_CACHE_MAX_AGE", default_value_t = 60)]
    pub cache_max_age: u64,

    /// Seconds after that in which caches may still show them while they ask again.
    #[arg(long, env = "SHAPEFEED_CACHE_STALE_AGE", default_value_t = 300)]
    pub cache_stale_age: u64,

    /// The first request for a table tracks it. Needs the table's owner; meant for development.
    #[arg(
        long,
        env = "SHAPEFEED_AUTO_TRACK",
        default_value_t = false,
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub auto_track: bool,

    /// Clients may delete (rotate) shapes.
    #[arg(
        long,
        env = "SHAPEFEED_ALLOW_DELETE",
        default_value_t = false,
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub allow_delete: bool,

    /// Role whose rights decide what is served; the connection's user if not given.
    #[arg(long, env = "SHAPEFEED_ROLE")]
    pub role: Option<String>,

    /// Connections for requests, beside the two of the feed.
    #[arg(long, env = "SHAPEFEED_POOL_SIZE", default_value_t = 8)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub pool_size: usize,

    /// Connections for snapshots: how many are taken at the same time.
    #[arg(long, env = "SHAPEFEED_SNAPSHOT_POOL_SIZE", default_value_t = 4)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub snapshot_pool_size: usize,

    /// Seconds after which a snapshot is given up.
    #[arg(long, env = "SHAPEFEED_SNAPSHOT_TIMEOUT", default_value_t = 600)]
    pub snapshot_timeout: u64,

    /// Folder for snapshots that do not fit in memory; the system's folder for temporary files if not given.
    #[arg(long, env = "SHAPEFEED_SPOOL_DIR")]
    pub spool_dir: Option<PathBuf>,

    /// Folder with a site that is served beside the API, so that its pages have one origin with it. Files that are there
    /// as `NAME.br` or `NAME.gz`, too, are sent as these.
    #[arg(long, env = "SHAPEFEED_STATIC_DIR")]
    pub static_dir: Option<PathBuf>,

    /// Bytes that all kept snapshots may take; above that, requests that need another one get a 503.
    #[arg(long, env = "SHAPEFEED_SPOOL_MAX_BYTES", default_value_t = 1 << 30)]
    pub spool_max_bytes: u64,

    /// Bytes of recent operations that are kept in memory for live shapes.
    #[arg(long, env = "SHAPEFEED_TAIL_MAX_BYTES", default_value_t = 64 << 20)]
    pub tail_max_bytes: usize,

    /// Transactions that a request is behind from which on it shares one pass over the log with others that are.
    #[arg(long, env = "SHAPEFEED_SHARED_READ_BEHIND", default_value_t = 10_000)]
    pub shared_read_behind: i64,

    /// Compress answers for clients that accept it.
    #[arg(
        long,
        env = "SHAPEFEED_COMPRESSION",
        default_value_t = true,
        default_missing_value = "true"
    )]
    #[arg(num_args = 0..=1, action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub compression: bool,

    /// Bytes of compressed answers that are kept for other clients that want the same.
    #[arg(long, env = "SHAPEFEED_COMPRESSED_MAX_BYTES", default_value_t = 64 << 20)]
    pub compressed_max_bytes: u64,

    /// Certificate for TLS: a file with its chain, PEM. SIGHUP reads it and its key again.
    #[arg(long, env = "SHAPEFEED_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Key of the certificate: a file, PEM.
    #[arg(long, env = "SHAPEFEED_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Bytes that the body of a write may have.
    #[arg(long, env = "SHAPEFEED_WRITE_MAX_BYTES", default_value_t = 1 << 20)]
    pub write_max_bytes: usize,

    /// Transactions a second that one user's clients may write, ten times as many at once; above that they get a 429. 0 sets
    /// no limit.
    #[arg(long, env = "SHAPEFEED_WRITE_RATE", default_value_t = 100)]
    pub write_rate: u32,

    /// Seconds after which a client's transaction is given up, waiting for locks included; the client sends it again.
    #[arg(long, env = "SHAPEFEED_WRITE_TIMEOUT", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub write_timeout: u64,

    /// Connections for writes: how many transactions are done at the same time.
    #[arg(long, env = "SHAPEFEED_WRITE_POOL_SIZE", default_value_t = 4)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub write_pool_size: usize,

    /// Writes that are answered at the same time; above that they get a 503.
    #[arg(long, env = "SHAPEFEED_MAX_CONCURRENT_WRITES", default_value_t = 300)]
    #[arg(value_parser = concurrent())]
    pub max_concurrent_writes: usize,

    /// Requests without a handle that are answered at the same time; above that they get a 503.
    #[arg(long, env = "SHAPEFEED_MAX_CONCURRENT_INITIAL", default_value_t = 300)]
    #[arg(value_parser = concurrent())]
    pub max_concurrent_initial: usize,

    /// Requests with a handle that are answered, or held, at the same time; above that they get a 503.
    #[arg(
        long,
        env = "SHAPEFEED_MAX_CONCURRENT_EXISTING",
        default_value_t = 10_000
    )]
    #[arg(value_parser = concurrent())]
    pub max_concurrent_existing: usize,

    /// Seconds that a connection may be silent between requests. Proxies in front should keep theirs for less.
    #[arg(long, env = "SHAPEFEED_IDLE_TIMEOUT", default_value_t = 180)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_timeout: u64,

    /// Seconds that the line and headers of a request, or a TLS handshake, may take to arrive.
    #[arg(long, env = "SHAPEFEED_HEADER_TIMEOUT", default_value_t = 15)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub header_timeout: u64,

    /// Seconds in which a client that is slow to take an answer must take 64 KiB of it, or is cut off.
    #[arg(long, env = "SHAPEFEED_SEND_TIMEOUT", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub send_timeout: u64,

    /// What is logged: error, warn, info, debug, trace, or a list of target=level.
    #[arg(long, env = "SHAPEFEED_LOG_LEVEL", default_value = "info")]
    pub log_level: String,

    /// Form of the log.
    #[arg(long, env = "SHAPEFEED_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// An object per line.
    Json,
}

fn concurrent() -> impl clap::builder::TypedValueParser<Value = usize> {
    clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1 << 30)
}

fn database_url() -> String {
    std::env::var("DATABASE_URL")
        .unwrap_or_else(|_| "postgresql://postgres@127.0.0.1:5432/postgres".into())
}

impl Config {
    /// As the command line and the environment say, or an end with an explanation.
    pub fn read() -> Self {
        let matches = crate::aliases::command().get_matches();
        Config::from_arg_matches(&matches)
            .unwrap_or_else(|error| error.exit())
            .checked()
    }

    /// This, or an end with an explanation: serving without a secret must be asked for.
    fn checked(self) -> Self {
        let text = match (&self.secret, self.insecure) {
            (None, false) => "one of --secret and --insecure is needed",
            (Some(_), true) => "--secret and --insecure exclude each other",
            _ => return self,
        };
        Config::command()
            .error(clap::error::ErrorKind::MissingRequiredArgument, text)
            .exit()
    }

    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.listen.ip(), self.port.unwrap_or(self.listen.port()))
    }

    /// How long a live request is held.
    pub fn hold(&self) -> Duration {
        Duration::from_millis(self.long_poll_timeout_ms)
    }

    /// What connections may take their time for.
    pub fn limits(&self) -> Limits {
        Limits {
            head: Duration::from_secs(self.header_timeout),
            idle: Duration::from_secs(self.idle_timeout),
            stall: Duration::from_secs(self.send_timeout),
        }
    }

    /// How long a stream of events lasts.
    pub fn sse_timeout(&self) -> Duration {
        Duration::from_millis(self.sse_timeout_ms)
    }

    /// For `cache-control`.
    pub fn ages(&self) -> Ages {
        Ages {
            max_age_s: self.cache_max_age,
            stale_age_s: self.cache_stale_age,
        }
    }
}
