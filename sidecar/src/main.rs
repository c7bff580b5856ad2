//! The sidecar.
#![forbid(unsafe_code)]
fn main() {}
