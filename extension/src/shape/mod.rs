//! Stage 3: what a shape is, and what the log says about it.

pub mod define;
pub mod definition;
pub mod schema_header;

pub mod cursor;
pub mod message;
pub mod net;

pub mod tuple;
pub mod window;

pub mod keyless;
pub mod overlay;
pub mod place;
pub mod rows;
pub mod snapshot;

pub mod attached;
pub mod feed;
pub mod log;
pub mod operation;

pub mod inspect;
