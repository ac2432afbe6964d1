//! The token and the TLS settings of a client, by the rules of clients/CONFORMANCE.md.

use std::path::PathBuf;
use std::sync::Arc;
use std::{env, fmt, fs, io};

use tokio::task::spawn_blocking;
use tonic::codegen::{BoxFuture, StdError, http::HeaderValue};
use tonic::{Status, transport::Endpoint};

use crate::error::Error;

/// The files, all PEM, for a daemon that listens with TLS. They are read when the client is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    server_name: Option<String>,
}

impl Tls {
    /// Trusts the system's certificates, and has no certificate of the client's.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the certificates to trust instead of the system's.
    #[must_use]
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        Self { ca_file: Some(path.into()), ..self }
    }

    /// Sets the client's own certificate and its key, if the daemon asks for one.
    #[must_use]
    pub fn client_certificate(
        self,
        cert_file: impl Into<PathBuf>,
        key_file: impl Into<PathBuf>,
    ) -> Self {
        Self { cert_file: Some(cert_file.into()), key_file: Some(key_file.into()), ..self }
    }

    /// Sets the name in the daemon's certificate, if it is not the host of the address.
    #[must_use]
    pub fn server_name(self, name: impl Into<String>) -> Self {
        Self { server_name: Some(name.into()), ..self }
    }

    /// Returns the settings in the environment, or None if it names no file.
    pub(crate) fn from_env() -> Option<Self> {
        let tls = Self {
            ca_file: variable("RUVD_TLS_CA_FILE").map(PathBuf::from),
            cert_file: variable("RUVD_TLS_CLIENT_CERT_FILE").map(PathBuf::from),
            key_file: variable("RUVD_TLS_CLIENT_KEY_FILE").map(PathBuf::from),
            server_name: None,
        };
        let server_name = variable("RUVD_TLS_SERVER_NAME");
        (tls != Self::default()).then_some(Self { server_name, ..tls })
    }

    #[cfg(feature = "tls")]
    pub(crate) fn configure(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};

        let mut config = ClientTlsConfig::new();
        config = match &self.ca_file {
            None => config.with_enabled_roots(),
            Some(path) => {
                let pem = read(path)?;
                if !pem.contains("-----BEGIN CERTIFICATE-----") {
                    let text = format!("{} has no certificate (PEM)", path.display());
                    return Err(Error::invalid(text));
                }
                config.ca_certificate(Certificate::from_pem(pem))
            }
        };
        config = match (&self.cert_file, &self.key_file) {
            (None, None) => config,
            (Some(cert), Some(key)) => config.identity(Identity::from_pem(read(cert)?, read(key)?)),
            _ => return Err(Error::invalid("a client certificate and its key belong together")),
        };
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        endpoint.tls_config(config).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_default();
            Error::invalid(format!("the files for TLS cannot be used: {cause}"))
        })
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_self)] // The same signature as with the feature.
    pub(crate) fn configure(&self, _: Endpoint) -> Result<Endpoint, Error> {
        Err(Error::invalid("the crate is built without its feature tls"))
    }
}

#[cfg(feature = "tls")]
fn read(path: &std::path::Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

type Source = dyn Fn() -> BoxFuture<String, StdError> + Send + Sync;

/// A bearer token, or where it comes from.
#[derive(Clone)]
pub(crate) enum Token {
    Value(String),
    File(PathBuf),
    Source(Arc<Source>),
}

impl Token {
    /// Returns the token in the environment; it is empty if there is none.
    pub(crate) fn from_env() -> Self {
        match variable("RUVD_TOKEN_FILE") {
            Some(path) => Self::File(path.into()),
            None => Self::Value(variable("RUVD_TOKEN").unwrap_or_default()),
        }
    }

    /// Whether there is no token to send.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Value(token) if token.is_empty())
    }

    /// Fails if the token is a value that cannot be sent.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Value(token) => {
                bearer(token).map(drop).map_err(|error| Error::invalid(error.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Returns the value of the header `authorization` for a call that is made now.
    pub(crate) async fn authorization(&self) -> Result<HeaderValue, Status> {
        let token = match self {
            Self::Value(token) => Ok(token.clone()),
            Self::File(path) => read_token(path.clone()).await.map_err(StdError::from),
            Self::Source(source) => source().await,
        };
        token.and_then(|token| bearer(&token)).map_err(|error| {
            Status::unauthenticated(format!("there is no token for the call: {error}"))
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Token(..)") // without the secret
    }
}

async fn read_token(path: PathBuf) -> io::Result<String> {
    let name = path.display().to_string();
    let content = spawn_blocking(|| fs::read_to_string(path)).await.map_err(io::Error::other)?;
    content.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}

/// Returns the header's value without whitespace around the token, if the token can be sent.
fn bearer(token: &str) -> Result<HeaderValue, StdError> {
    let token = token.trim();
    if token.is_empty() {
        return Err("the token is empty".into());
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the token has a character that is not visible ASCII".into());
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns a variable of the environment, or None if it is empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
