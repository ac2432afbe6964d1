//! The connections to the client's addresses, by the rules of clients/CONFORMANCE.md.
//!
//! All calls use the current address, until a call fails over to the next.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::{io, net::SocketAddr, time::Duration};

use futures_util::future::poll_fn;
use hyper_util::client::legacy::connect::{HttpConnector, dns::Name};
use tokio::net::lookup_host;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::{BoxFuture, StdError, http};
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;
use uuid::Uuid;

use crate::requests::OwnMetadata;
use crate::security::Token;
use crate::v1::session_service_client::SessionServiceClient;

pub(crate) type Stub = SessionServiceClient<Connection>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to each of the client's addresses.
#[derive(Debug)]
pub(crate) struct Connections {
    entries: Vec<Arc<Entry>>,
    current: AtomicUsize,
    /// False for one daemon. Then a call fails where it was made.
    pub(crate) are_several: bool,
}

/// An address, and its connection once there was a call.
#[derive(Debug)]
struct Entry {
    endpoint: Endpoint,
    is_name: bool,
    token: Option<Token>,
    metadata: OwnMetadata,
    channel: Mutex<Option<Channel>>,
}

impl Connections {
    /// Takes endpoints, and of each whether its address is a name that may stand for several daemons.
    pub(crate) fn new(
        endpoints: Vec<(Endpoint, bool)>,
        token: Option<&Token>,
        metadata: &OwnMetadata,
    ) -> Self {
        let are_several = endpoints.len() > 1 || endpoints.iter().any(|(_, is_name)| *is_name);
        let entries: Vec<_> = endpoints
            .into_iter()
            .map(|(endpoint, is_name)| {
                let endpoint = if are_several {
                    endpoint
                        .connect_timeout(CONNECT_TIMEOUT_OF_SEVERAL)
                        .http2_keep_alive_interval(PING_INTERVAL)
                        .keep_alive_timeout(PING_TIMEOUT)
                } else {
                    endpoint.connect_timeout(CONNECT_TIMEOUT)
                };
                Arc::new(Entry {
                    endpoint,
                    is_name,
                    token: token.cloned(),
                    metadata: metadata.clone(),
                    channel: Mutex::default(),
                })
            })
            .collect();
        // Otherwise all clients that have the same list would use its first address.
        let current = AtomicUsize::new(Uuid::new_v4().as_bytes()[0] as usize % entries.len());
        Self { entries, current, are_several }
    }

    /// Returns the position of the current address.
    pub(crate) fn now(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Returns the positions after this one, in the order in which they are tried.
    pub(crate) fn others(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.entries.len();
        (1..count).map(move |step| (at + step) % count)
    }

    /// The number of attempts after which to pause.
    pub(crate) fn round_length(&self) -> usize {
        if self.are_several { self.entries.len().max(2) } else { 1 }
    }

    /// Moves on from the address of a call that failed, unless another call has moved on before.
    /// `answered` is whether the daemon itself refused the call.
    pub(crate) fn leave(&self, failed: usize, answered: bool) {
        let next = (failed + 1) % self.entries.len();
        let _ = self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
        let entry = &self.entries[failed];
        if answered && entry.is_name {
            // The old connection would lead to the same one of the daemons that the name stands for.
            // Calls that run there hold it until they end.
            *entry.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Returns the service at an address, with the token of the client.
    pub(crate) fn connection(&self, at: usize) -> Connection {
        Connection(self.entries[at].clone())
    }

    /// Returns a stub of the service at an address.
    pub(crate) fn stub(&self, at: usize) -> Stub {
        // The daemon limits the sizes, because its error says why a message was rejected.
        Stub::new(self.connection(at)).max_decoding_message_size(usize::MAX)
    }
}

/// A connection that is made at its first call and adds the token to every call.
///
/// tonic's channel needs a tokio runtime, which is there at the first call, but perhaps not before.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Entry>);

impl Entry {
    fn channel(&self) -> Channel {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.get_or_insert_with(|| self.connect()).clone()
    }

    fn connect(&self) -> Channel {
        if !self.is_name {
            return self.endpoint.connect_lazy();
        }
        let mut connector = HttpConnector::new_with_resolver(Records);
        connector.enforce_http(false); // https, too
        connector.set_nodelay(true);
        connector.set_connect_timeout(self.endpoint.get_connect_timeout()); // of all records together
        self.endpoint.connect_with_connector_lazy(connector)
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, StdError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(())) // The call waits for its channel.
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let entry = self.0.clone();
        Box::pin(async move {
            request.headers_mut().extend(entry.metadata.0.clone().into_headers()); // or replaces
            if let Some(token) = &entry.token {
                request.headers_mut().insert(AUTHORIZATION, token.authorization().await?);
            }
            let mut channel = entry.channel();
            poll_fn(|context| channel.poll_ready(context)).await?;
            Ok(channel.call(request).await?)
        })
    }
}

/// Resolves a name to its records in random order, so that not all clients use the same one.
#[derive(Clone)]
struct Records;

impl Service<Name> for Records {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let mut records: Vec<_> = lookup_host((name.as_str(), 0)).await?.collect();
            records.sort_by_cached_key(|_| Uuid::new_v4());
            Ok(records.into_iter())
        })
    }
}
