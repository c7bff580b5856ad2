//! One GET of something small.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::tls;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is longer is something else.
const MAX_BYTES: usize = 1 << 20;

/// The body that a URL has.
pub async fn fetch(url: &str) -> Result<Bytes> {
    tokio::time::timeout(TIMEOUT, get(url.parse()?)).await?
}

async fn get(url: Uri) -> Result<Bytes> {
    let host = url.host().ok_or("the URL has no host")?.to_owned();
    let is_tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let bare = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let stream = TcpStream::connect((bare.as_str(), port)).await?;
    if !is_tls {
        return exchange(stream, &url).await;
    }
    let config = tls::client(&tls::Verify::SystemRoots).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(ServerName::try_from(bare)?, stream)
        .await?;
    exchange(stream, &url).await
}

async fn exchange<S>(stream: S, url: &Uri) -> Result<Bytes>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |it| it.as_str());
    let host = url.authority().map_or("", |it| it.as_str());
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(format!("{url} answered {}", response.status()).into());
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await?;
    connection.abort();
    Ok(body.to_bytes())
}
