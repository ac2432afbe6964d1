//! The settings of a client.

use std::path::PathBuf;
use std::sync::Arc;
use std::{future::Future, time::Duration};

use tonic::codegen::StdError;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

use crate::addresses::{is_local, is_name, is_socket, split};
use crate::client::Client;
use crate::connections::Connections;
use crate::error::Error;
use crate::requests::OwnMetadata;
use crate::security::{Tls, Token, variable};

/// The default address of the daemon.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

const RECONNECT: Duration = Duration::from_secs(10);
// An error that names many invalid fields may exceed the default limit of 16 KiB of headers.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// The settings of a [`Client`], made by [`Client::builder`].
///
/// What is not set comes from the environment; an empty variable counts as unset.
#[derive(Clone, Debug, Default)]
#[must_use = "build() creates the client"]
pub struct ClientBuilder {
    address: Option<String>,
    reconnect: Option<Duration>,
    token: Option<Token>,
    tls: Option<Tls>,
    metadata: OwnMetadata,
}

/// How a client is created.
#[allow(clippy::missing_errors_doc)] // Documented at `ClientBuilder::build`.
impl Client {
    /// Returns the settings for a new client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Creates a client of the daemon at `host:port` or `unix:PATH`, or of several (see
    /// [`ClientBuilder::address`]), with all other settings from the environment.
    ///
    /// It does not connect, and needs no tokio runtime: both are needed at the first call. Fails with
    /// `INVALID_ARGUMENT` as [`ClientBuilder::build`] does.
    pub fn new(address: &str) -> Result<Self, Error> {
        Self::builder().address(address).build()
    }

    /// Creates a client with all settings from the environment. The daemon is at `RUVD_ADDRESS` or
    /// [`DEFAULT_ADDRESS`].
    pub fn from_env() -> Result<Self, Error> {
        Self::builder().build()
    }
}

impl ClientBuilder {
    /// Sets the daemon's address: `host:port` or `unix:PATH`. By default it is `RUVD_ADDRESS` or
    /// [`DEFAULT_ADDRESS`].
    ///
    /// It may be a list of several with commas, or a DNS name with several records. The client uses
    /// one of them, and goes on to the next when that cannot be reached or its daemon shuts down.
    pub fn address(self, address: impl Into<String>) -> Self {
        Self { address: Some(address.into()), ..self }
    }

    /// Sets how long the client tries to resume a broken stream. The default of 10 s is also how
    /// long the daemon keeps the completion running.
    pub fn reconnect(self, reconnect: Duration) -> Self {
        Self { reconnect: Some(reconnect), ..self }
    }

    /// Sends a bearer token with every call, or none if it is empty. By default it is in the file
    /// `RUVD_TOKEN_FILE`, or else in `RUVD_TOKEN`.
    ///
    /// A client with a token needs TLS, a Unix socket, or an address of loopback.
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { token: Some(Token::Value(token.into())), ..self }
    }

    /// Sends the bearer token in a file, which is read for every call, because it may be renewed.
    pub fn token_file(self, path: impl Into<PathBuf>) -> Self {
        Self { token: Some(Token::File(path.into())), ..self }
    }

    /// Sends the bearer token that a function returns, which is called for every call. Its error
    /// fails the call with UNAUTHENTICATED.
    pub fn token_source<F, T, E>(self, source: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<StdError>,
    {
        let source = move || {
            let token = source();
            Box::pin(async move { token.await.map_err(Into::into) }) as _
        };
        Self { token: Some(Token::Source(Arc::new(source))), ..self }
    }

    /// Sends metadata of your own with every call, such as a header for a proxy. It takes the place
    /// of the client's own of the same name. None by default.
    pub fn metadata(self, metadata: MetadataMap) -> Self {
        Self { metadata: OwnMetadata(metadata), ..self }
    }

    /// Encrypts the connection, unless the address is a Unix socket. By default this depends on
    /// `RUVD_TLS_CA_FILE`, `RUVD_TLS_CLIENT_CERT_FILE`, `RUVD_TLS_CLIENT_KEY_FILE` and
    /// `RUVD_TLS_SERVER_NAME`; if they name no file, the connection is not encrypted.
    ///
    /// Without the crate's feature `tls`, which is on by default, `build` then fails.
    pub fn tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Creates the client. It does not connect: whether the daemon is there shows at the first call.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` if an address is malformed, if the token or a file for TLS cannot be used,
    /// or if a token would be sent to another machine without TLS.
    pub fn build(self) -> Result<Client, Error> {
        let address = self.address.or_else(|| variable("RUVD_ADDRESS"));
        let entries = split(address.as_deref().unwrap_or(DEFAULT_ADDRESS))?;
        let tls = self.tls.or_else(Tls::from_env);
        let token = Some(self.token.unwrap_or_else(Token::from_env)).filter(|it| !it.is_none());
        let mut endpoints = Vec::new();
        for entry in entries {
            endpoints.push((endpoint(entry, tls.as_ref())?, is_name(entry)));
            if token.is_some() && tls.is_none() && !is_local(entry) {
                return Err(Error::invalid(format!("a token is not sent to {entry} without TLS")));
            }
        }
        if let Some(token) = &token {
            token.check()?;
        }
        let connections = Arc::new(Connections::new(endpoints, token.as_ref(), &self.metadata));
        Ok(Client { connections, reconnect: self.reconnect.unwrap_or(RECONNECT) })
    }
}

fn endpoint(entry: &str, tls: Option<&Tls>) -> Result<Endpoint, Error> {
    let tls = tls.filter(|_| !is_socket(entry));
    let uri = match (is_socket(entry), tls) {
        (true, _) => entry.to_owned(),
        (false, None) => format!("http://{entry}"),
        (false, Some(_)) => format!("https://{entry}"),
    };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|_| Error::invalid(format!("{entry:?} is neither host:port nor unix:PATH")))?
        .http2_max_header_list_size(MAX_HEADER_BYTES);
    match tls {
        Some(tls) => tls.configure(endpoint),
        None => Ok(endpoint),
    }
}
