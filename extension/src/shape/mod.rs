//! Stage 3: what a shape is, and what the log says about it.

pub mod define;
pub mod definition;
pub mod schema_header;

pub mod message;
pub mod net;

pub mod family;
pub mod tuple;
pub mod window;

pub mod place;

pub mod cursor;
pub mod keyless;
pub mod merge;
pub mod overlay;
mod parameters;
pub mod rows;
pub mod snapshot;
pub mod subset;

pub mod judge;
pub mod log;
pub mod operation;

pub mod member;

pub mod attached;
pub mod feed;
pub mod group;
pub mod intervals;
pub mod pass;
pub mod ranges;
pub mod refresh;
pub mod resolve;
pub mod route;
pub mod router;
pub mod share;
pub mod template;

pub mod explain;
pub mod inspect;
pub mod named;
