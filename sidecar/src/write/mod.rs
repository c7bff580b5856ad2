//! Writes of clients (docs/writing.md): batches of transactions, each of which the database does once.

mod batch;
pub mod position;
pub mod rate;
mod request;

pub use batch::{Batch, run};
pub use request::read;
