//! Definitions of shapes, as the database gives them, and a memory of those that live requests use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::identifier::Relation;
use crate::params::ShapeParams;

/// How long a live request may rely on a definition without asking: rights and columns may have changed.
pub const TRUSTED_FOR: Duration = Duration::from_secs(5);
/// How long it may while the feed has the shape and tells of such changes. What it does not see, as another table that the
/// same name means by now, shows after this.
const WATCHED_FOR: Duration = Duration::from_secs(60);
/// Definitions that are remembered at most, and bytes of them.
const REMEMBERED: usize = 50_000;
const REMEMBERED_BYTES: usize = 128 << 20;

/// A definition. Everything but what is named here is for the database alone.
#[derive(Debug)]
pub struct Definition {
    raw: Box<RawValue>,
    /// Hash over all that makes the shape.
    pub hash: u64,
    /// The table.
    pub relid: u32,
    /// The tables of its subqueries.
    pub inner: Box<[u32]>,
    /// Its name, for people.
    pub table: String,
    /// All columns of the table were asked for, whichever they are.
    pub all_columns: bool,
    /// Changes of the catalogs that it has outlived, by `Definitions::changes`.
    known: AtomicU64,
    /// Whether changes to it, and to the tables of its subqueries, are captured.
    pub tracked: bool,
    /// Those of them that are not captured.
    pub untracked: Vec<Untracked>,
    /// Value of `electric-schema`.
    pub schema: HeaderValue,
}

/// A table that is not captured.
#[derive(Debug, Deserialize)]
pub struct Untracked {
    /// The table.
    pub relid: u32,
    schema: String,
    table: String,
}

impl Untracked {
    /// Its name, for people.
    pub fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}

#[derive(Deserialize)]
struct Inner {
    relid: u32,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(deserialize_with = "decimal")]
    hash: u64,
    relid: u32,
    schema: String,
    table: String,
    #[serde(default)]
    tracked: bool,
    #[serde(default)]
    all_columns: bool,
    #[serde(default)]
    inner: Vec<Inner>,
    #[serde(default)]
    untracked: Vec<Untracked>,
    #[serde(borrow)]
    schema_header: &'a RawValue,
}

impl Definition {
    /// Reads what `_define` answered.
    pub fn new(raw: Box<RawValue>) -> Result<Self, serde_json::Error> {
        let fields: Fields = serde_json::from_str(raw.get())?;
        let schema = HeaderValue::from_str(&ascii(fields.schema_header.get()))
            .map_err(<serde_json::Error as serde::de::Error>::custom)?;
        let (hash, relid, tracked) = (fields.hash, fields.relid, fields.tracked);
        let table = format!("{}.{}", fields.schema, fields.table);
        Ok(Definition {
            hash,
            relid,
            inner: fields.inner.iter().map(|table| table.relid).collect(),
            table,
            all_columns: fields.all_columns,
            known: AtomicU64::new(0),
            tracked,
            untracked: fields.untracked,
            schema,
            raw,
        })
    }

    /// Whether a change of the catalogs is one that it is known to have outlived.
    pub fn outlived(&self, change: u64) -> bool {
        change <= self.known.load(Ordering::Acquire)
    }

    /// It has outlived this change.
    pub fn set_outlived(&self, change: u64) {
        self.known.fetch_max(change, Ordering::AcqRel);
    }

    /// The table by its name.
    pub fn relation(&self) -> Relation {
        let fields: Fields = serde_json::from_str(self.raw.get()).expect("it was read before");
        Relation {
            schema: fields.schema,
            table: fields.table,
        }
    }

    /// The table and those of subqueries.
    pub fn relids(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.relid).chain(self.inner.iter().copied())
    }

    /// Whether both have columns of the same names.
    pub fn has_columns_of(&self, other: &Definition) -> bool {
        let names = |it: &Definition| -> Option<BTreeSet<String>> {
            let columns: BTreeMap<String, IgnoredAny> =
                serde_json::from_str(it.schema.to_str().ok()?).ok()?;
            Some(columns.into_keys().collect())
        };
        names(self) == names(other)
    }

    /// The JSON, as it came.
    pub fn raw(&self) -> &RawValue {
        &self.raw
    }
}

/// A number that is written as a string.
fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}

/// JSON with everything but ASCII escaped, as a header needs it.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            ' '..='~' => text.push(c),
            c if c.is_ascii() => {} // white space between values
            c => c
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    text
}

/// Definitions by what was asked for.
#[derive(Default)]
pub struct Definitions {
    // Held for a look-up, never across an await.
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    by_params: HashMap<ShapeParams, (Arc<Definition>, Instant)>,
    bytes: usize,
    /// How often something was forgotten because it may have changed.
    changes: u64,
}

impl Remembered {
    fn is_full(&self) -> bool {
        self.by_params.len() > REMEMBERED || self.bytes > REMEMBERED_BYTES
    }

    fn retain(&mut self, keep: impl Fn(&Definition, Instant) -> bool) {
        self.by_params
            .retain(|_, (definition, at)| keep(definition, *at));
        self.bytes = self.by_params.iter().map(weight).sum();
    }
}

/// Bytes that a definition takes, and what was asked for.
fn weight((shape, (definition, _)): (&ShapeParams, &(Arc<Definition>, Instant))) -> usize {
    shape.bytes() + definition.raw.get().len() + definition.schema.len()
}

impl Definitions {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().expect("no panic while held")
    }

    /// A definition that is recent enough for a live request. `is_watched`: whether the feed tells of changes to the shape
    /// of a hash.
    pub fn recent(
        &self,
        shape: &ShapeParams,
        is_watched: impl FnOnce(u64) -> bool,
    ) -> Option<Arc<Definition>> {
        let (definition, at) = self.remembered().by_params.get(shape)?.clone();
        let age = at.elapsed();
        let trusted = age < TRUSTED_FOR || (age < WATCHED_FOR && is_watched(definition.hash));
        trusted.then_some(definition)
    }

    /// To be taken before the database is asked for a definition.
    pub fn changes(&self) -> u64 {
        self.remembered().changes
    }

    /// A definition by its hash, for requests that name a handle only.
    pub fn by_hash(&self, hash: u64) -> Option<Arc<Definition>> {
        let remembered = self.remembered();
        remembered
            .by_params
            .values()
            .find(|(definition, _)| definition.hash == hash)
            .map(|(definition, _)| definition.clone())
    }

    /// Remembers a definition, unless something has changed since the database was asked.
    pub fn remember(&self, shape: &ShapeParams, definition: &Arc<Definition>, changes: u64) {
        let mut remembered = self.remembered();
        if remembered.changes != changes {
            return;
        }
        let entry = (definition.clone(), Instant::now());
        remembered.bytes += weight((shape, &entry));
        if let Some(replaced) = remembered.by_params.insert(shape.clone(), entry) {
            remembered.bytes -= weight((shape, &replaced));
        }
        if remembered.is_full() {
            remembered.retain(|_, at| at.elapsed() < TRUSTED_FOR);
        }
        if remembered.is_full() {
            remembered.retain(|_, _| false);
        }
    }

    /// Forgets definitions that may be others by now.
    pub fn forget(&self, has_changed: impl Fn(&Definition) -> bool) {
        let mut remembered = self.remembered();
        remembered.changes += 1;
        remembered.retain(|definition, _| !has_changed(definition));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn definition(hash: u64) -> Arc<Definition> {
        let json = serde_json::json!({
            "hash": hash.to_string(), "relid": 1, "schema": "public", "table": "t", "tracked": true,
            "schema_header": {"größe": {"type": "int8"}, "\u{1f600}": {"type": "text"}},
        });
        Arc::new(Definition::new(RawValue::from_string(json.to_string()).unwrap()).unwrap())
    }

    #[test]
    fn reads_what_the_database_says() {
        let definition = definition(u64::MAX);
        assert_eq!((definition.hash, definition.relid), (u64::MAX, 1));
        assert_eq!(definition.table, "public.t");
        assert!(definition.has_columns_of(&self::definition(1)));
        let text = definition.schema.to_str().unwrap();
        assert!(text.contains("gr\\u00f6\\u00dfe") && text.contains("\\ud83d\\ude00"));
        let parsed: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(parsed["größe"]["type"], "int8");
    }

    fn asked(condition: String) -> ShapeParams {
        let query = format!("offset=-1&table=t&where={condition}");
        crate::params::shape_request(&crate::query::Query::parse(&query))
            .unwrap()
            .shape
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let definitions = Definitions::default();
        let shape = |n: u64| asked(format!("{n}{}", "x".repeat(60_000)));
        for n in 0..4000 {
            definitions.remember(&shape(n % 3000), &definition(n % 3000), 0);
            let bytes = definitions.remembered().bytes;
            assert!(bytes <= REMEMBERED_BYTES);
        }
        let last = shape(999);
        assert_eq!(definitions.recent(&last, |_| false).unwrap().hash, 999);
        assert!(definitions.by_hash(999).is_some());
        definitions.forget(|definition| definition.hash == 999);
        assert!(definitions.recent(&last, |_| true).is_none());
        assert!(definitions.by_hash(999).is_none());
        definitions.forget(|_| true);
        assert_eq!(definitions.remembered().bytes, 0);
    }

    #[test]
    fn what_the_feed_watches_is_trusted_for_longer() {
        let definitions = Definitions::default();
        let shape = asked("a".into());
        let recent = |watched: bool, age: Duration| {
            definitions.remember(&shape, &definition(7), definitions.changes());
            for (_, at) in definitions.remembered().by_params.values_mut() {
                *at -= age;
            }
            definitions.recent(&shape, |_| watched).is_some()
        };
        assert!(recent(false, Duration::ZERO) && !recent(false, TRUSTED_FOR));
        assert!(recent(true, TRUSTED_FOR) && !recent(true, WATCHED_FOR));
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_remembered() {
        let definitions = Definitions::default();
        let (shape, asked_at) = (asked("a".into()), definitions.changes());
        definitions.forget(|definition| definition.relid == 1);
        definitions.remember(&shape, &definition(7), asked_at);
        assert!(definitions.recent(&shape, |_| true).is_none());
    }
}
