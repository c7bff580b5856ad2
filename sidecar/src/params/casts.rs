//! The first stage: types. Its errors are reported together.

use std::collections::BTreeMap;

use serde_json::json;

use super::{BLANK, FieldErrors, INVALID, Log, Replica, blank};
use crate::query::{NotText, Query};

/// Parameters whose types are checked before anything else.
#[derive(Default)]
pub(super) struct Casts {
    pub(super) replica: Replica,
    pub(super) log: Log,
    pub(super) params: BTreeMap<String, String>,
    pub(super) experimental_live_sse: bool,
    errors: FieldErrors,
}

impl Casts {
    pub(super) fn read_offset_required(&mut self, query: &Query) {
        if blank(query.get("offset")) {
            self.fail("offset", BLANK);
        }
        if query.get("live_sse").is_none() {
            self.experimental_live_sse = self.boolean(query, "experimental_live_sse", "live_sse");
        }
    }

    pub(super) fn read_flags_strictly(&mut self, query: &Query) {
        for name in ["live", "live_sse"] {
            self.boolean(query, name, name);
        }
    }

    fn boolean(&mut self, query: &Query, name: &str, field: &str) -> bool {
        match query.given(name).map(|value| value.as_deref()) {
            Some(Ok("true" | "1")) => true,
            None | Some(Ok("false" | "0")) => false,
            Some(_) => {
                self.fail(field, INVALID);
                false
            }
        }
    }

    fn one_of<T: Default>(
        &mut self,
        query: &Query,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(value) = query.given(name) else {
            return T::default();
        };
        value.as_deref().ok().and_then(parse).unwrap_or_else(|| {
            self.fail(name, INVALID);
            T::default()
        })
    }

    /// `params[1]=…`: keys stay text here, they are judged with the shape.
    fn params(&mut self, query: &Query) {
        if query.given("params").is_some() {
            self.fail("params", INVALID);
        }
        for (key, value) in query.entries("params") {
            match value {
                Ok(text) if !key.is_empty() && !key.contains(['[', ']']) => {
                    self.params.insert(key.to_owned(), text.to_string());
                }
                _ => self.fail("params", INVALID),
            }
        }
    }

    /// Values that only have to be text.
    fn texts(&mut self, query: &Query) {
        for name in ["table", "where", "columns", "queryable_columns"] {
            if let Some(Err(NotText)) = query.get(name) {
                self.fail(name, INVALID);
            }
        }
    }

    fn fail(&mut self, field: &str, text: &str) {
        self.errors.insert(field.to_owned(), json!([text]));
    }
}

pub(super) fn casts(query: &Query, extra: fn(&mut Casts, &Query)) -> Result<Casts, FieldErrors> {
    let mut casts = Casts::default();
    casts.replica = casts.one_of(query, "replica", Replica::parse);
    casts.log = casts.one_of(query, "log", Log::parse);
    casts.params(query);
    casts.texts(query);
    extra(&mut casts, query);
    if casts.errors.is_empty() {
        Ok(casts)
    } else {
        Err(casts.errors)
    }
}
