//! Stage 3: what a shape is, and what the log says about it.

pub mod define;
pub mod definition;
pub mod feed;
pub mod log;
pub mod message;
pub mod net;
pub mod place;
pub mod schema_header;
pub mod snapshot;
pub mod tuple;
pub mod window;
