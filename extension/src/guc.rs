//! Settings, with their units.

use std::ffi::CString;
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

// As logical_decoding_work_mem, which is for the same: 100,000 rows of an ordinary table stay in memory.
static CAPTURE_MEMORY_KB: GucSetting<i32> = GucSetting::<i32>::new(65536);
// Who reads the log has one transaction at a time in memory, about three times as large.
static CAPTURE_FILE_LIMIT_MB: GucSetting<i32> = GucSetting::<i32>::new(1024);
// Most types take at most eight times the space as text, and no text of Postgres has more than 1 GB.
static MAX_CHANGE_KB: GucSetting<i32> = GucSetting::<i32>::new(64 << 10);
static RETENTION_S: GucSetting<i32> = GucSetting::<i32>::new(24 * 3600);
static RETENTION_SIZE_MB: GucSetting<i32> = GucSetting::<i32>::new(4096);
static WRITE_CLIENT_RETENTION_S: GucSetting<i32> = GucSetting::<i32>::new(90 * 24 * 3600);
static KEYLESS_MAX_ROWS: GucSetting<i32> = GucSetting::<i32>::new(100_000);
static CLAUSE_TIME_LIMIT_MS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static MAX_MOVED_ROWS: GucSetting<i32> = GucSetting::<i32>::new(100_000);
static MAX_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(32);
static SEARCH_PATH: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"pg_catalog, public"));
static ALLOWED_FUNCTIONS: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c""));
static DATABASES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Tells Postgres about the settings. `preloading` is true while the postmaster loads libraries.
pub fn register(preloading: bool) {
    GucRegistry::define_int_guc(
        c"shapefeed.capture_memory",
        c"Memory that the changes of one transaction may take before they go to a temporary file.",
        c"",
        &CAPTURE_MEMORY_KB,
        64,
        1 << 20,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.capture_file_limit",
        c"Room that the changes of one transaction may take before it commits, mostly in a temporary file.",
        c"What would be more is left out, and every shape on its table ends.",
        &CAPTURE_FILE_LIMIT_MB,
        1,
        1 << 30,
        GucContext::Suset,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.max_change_size",
        c"Largest change of a row that the log takes: its large values, old and new together, not compressed.",
        c"A larger one is left out, and every shape on the table ends.",
        &MAX_CHANGE_KB,
        64,
        120 << 10,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.retention",
        c"How far back the log reaches.",
        c"A client that comes back later reads its shapes again from the start.",
        &RETENTION_S,
        10,
        30 * 24 * 3600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.retention_size",
        c"How large the log becomes before its oldest part is dropped.",
        c"When nothing can be dropped, writers leave changes out of the log at twice this size, and end the shapes on their tables.",
        &RETENTION_SIZE_MB,
        8,
        1 << 30,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.write_client_retention",
        c"How long a client that writes is remembered after its last transaction.",
        c"One that comes back later with transactions that it has sent before does not learn what became of them.",
        &WRITE_CLIENT_RETENTION_S,
        10,
        10 * 365 * 24 * 3600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.keyless_max_rows",
        c"Largest table without a primary key that can be followed.",
        c"",
        &KEYLESS_MAX_ROWS,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"shapefeed.clause_time_limit",
        c"Time that evaluating a where clause may take for 1,000 rows, or fewer, of a transaction.",
        c"A shape whose where clause takes longer ends. 0 sets no limit.",
        &CLAUSE_TIME_LIMIT_MS,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"shapefeed.max_moved_rows",
        c"Most rows that one transaction may bring into a shape or take from it without touching them.",
        c"A shape with subqueries of which it would move more is read again from its start.",
        &MAX_MOVED_ROWS,
        1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"shapefeed.search_path",
        c"Schemas in which the names in a where clause are looked up.",
        c"",
        &SEARCH_PATH,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"shapefeed.allowed_functions",
        c"Functions, beside those of pg_catalog and of extensions, that a where clause may call.",
        c"Comma-separated, schema-qualified names.",
        &ALLOWED_FUNCTIONS,
        GucContext::Suset,
        GucFlags::default(),
    );
    if preloading {
        GucRegistry::define_int_guc(
            c"shapefeed.max_databases",
            c"Databases of this cluster that can have a sequencer.",
            c"",
            &MAX_DATABASES,
            1,
            1024,
            GucContext::Postmaster,
            GucFlags::default(),
        );
        GucRegistry::define_string_guc(
            c"shapefeed.databases",
            c"Databases to look for the extension in at start; empty = all that allow connections.",
            c"Comma-separated names.",
            &DATABASES,
            GucContext::Sighup,
            GucFlags::default(),
        );
    }
}

/// Bytes that the changes of one transaction may take before they go to a temporary file.
pub fn capture_memory_bytes() -> usize {
    CAPTURE_MEMORY_KB.get() as usize * 1024
}

/// Bytes that the changes of one transaction may take.
pub fn capture_file_limit_bytes() -> u64 {
    (CAPTURE_FILE_LIMIT_MB.get() as u64) << 20
}

/// Bytes of the largest change that the log takes, its values not compressed.
pub fn max_change_bytes() -> usize {
    MAX_CHANGE_KB.get() as usize * 1024
}

/// How far back the log reaches, in seconds.
pub fn retention_s() -> i64 {
    i64::from(RETENTION_S.get())
}

/// How large the log becomes before its oldest part is dropped, in bytes.
pub fn retention_bytes() -> u64 {
    (RETENTION_SIZE_MB.get() as u64) << 20
}

/// Size of the log at which writers leave changes out of it, in bytes.
pub fn hard_limit_bytes() -> u64 {
    2 * retention_bytes()
}

/// Members of the ring of log tables.
pub const RING_MEMBERS: usize = 8;

/// Members that hold what retention keeps; of the others one is written and one is emptied.
pub const MEMBERS_KEPT: u64 = RING_MEMBERS as u64 - 2;

/// Seconds for which one member of the ring is written, rounded up: when its turn comes again, what is in it is older than
/// the retention.
pub fn ring_interval_s() -> i64 {
    let kept = MEMBERS_KEPT as i64;
    (retention_s() + kept - 1) / kept
}

/// Resting positions in one retention, by time and by size.
pub const RESTS_PER_RETENTION: u64 = 16;

/// Largest table without a key that can be followed, in rows.
pub fn keyless_max_rows() -> u64 {
    KEYLESS_MAX_ROWS.get() as u64
}

/// Time that evaluating a where clause may take for so many changes of a transaction; None: any.
pub fn clause_time_limit(changes: usize) -> Option<Duration> {
    const CHANGES: usize = 1000;
    let limit_ms = CLAUSE_TIME_LIMIT_MS.get() as u64;
    let times = changes.div_ceil(CHANGES).max(1) as u64;
    (limit_ms > 0).then(|| Duration::from_millis(limit_ms.saturating_mul(times)))
}

/// Most rows that one transaction may move in a shape.
pub fn max_moved_rows() -> usize {
    MAX_MOVED_ROWS.get() as usize
}

/// Databases that can have a sequencer.
pub fn max_databases() -> usize {
    MAX_DATABASES.get() as usize
}

/// Databases that the launcher visits; empty = all.
pub fn databases() -> Vec<String> {
    list(&DATABASES)
}

fn list(setting: &GucSetting<Option<CString>>) -> Vec<String> {
    let value = setting.get().unwrap_or_default();
    value
        .to_string_lossy()
        .split(',')
        .map(|item| item.trim().to_string())
        .filter(|item| !item.is_empty())
        .collect()
}
