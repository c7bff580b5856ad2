//! The Postgres boundary: the only module with `unsafe` in it. Each submodule wraps one part of the server in safe
//! types; a SAFETY line names the rule of Postgres that it relies on.
#![allow(unsafe_code)]

pub mod error;
pub mod relation;
pub mod scan;

pub mod background;
pub mod database;
pub mod event;
pub mod heap;
pub mod log_tables;
pub mod owner;
pub mod procedure;
pub mod shmem;
pub mod snapshot;
pub mod spill;
pub mod time_limit;
pub mod trigger;
pub mod utility;
pub mod xact;

pub mod attempt;
pub mod expr;
pub mod list;
pub mod role;
pub mod table;

pub mod encode;
pub mod image;
pub mod invalidation;
pub mod memory;
pub mod order;
pub mod query;
pub mod reading;
pub mod statement;
pub mod values;
