//! `/openapi.json`: the service's description for machines.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::response::JSON;

const DESCRIPTION: &str = include_str!("../../openapi.json");

/// The description, as it was written.
pub async fn get() -> impl IntoResponse {
    ([(CONTENT_TYPE, JSON)], DESCRIPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_this_version() {
        let description: serde_json::Value = serde_json::from_str(DESCRIPTION).unwrap();
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
