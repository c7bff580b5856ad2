//! The Postgres boundary: the only module with `unsafe` in it. Each submodule wraps one part of the server in safe
//! types; a SAFETY line names the rule of Postgres that it relies on.
#![allow(unsafe_code)]

pub mod error;
