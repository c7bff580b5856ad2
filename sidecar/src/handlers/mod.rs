//! What each route does.

pub mod delete;
pub mod health;
pub mod metrics;
pub mod openapi;
pub mod root;
pub mod shape;
pub mod write;
