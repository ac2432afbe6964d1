//! The connection to the daemon, and what all calls have in common: token, trace and deadline.

use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures_util::future::poll_fn;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Extensions, Request};

use crate::security::Token;
use crate::v1::session_service_client::SessionServiceClient;

pub(crate) type Stub = SessionServiceClient<Connection>;

/// A connection that is made at its first call and adds the token to every call.
///
/// tonic's channel needs a tokio runtime, which is there at the first call, but perhaps not before.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    channel: OnceLock<Channel>,
    token: Option<Token>,
}

impl Connection {
    pub(crate) fn new(endpoint: Endpoint, token: Option<Token>) -> Self {
        Self(Arc::new(Inner { endpoint, channel: OnceLock::new(), token }))
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
        let inner = self.0.clone();
        Box::pin(async move {
            if let Some(token) = &inner.token {
                request.headers_mut().insert(AUTHORIZATION, token.authorization().await?);
            }
            let mut channel = inner.channel.get_or_init(|| inner.endpoint.connect_lazy()).clone();
            poll_fn(|context| channel.poll_ready(context)).await?;
            Ok(channel.call(request).await?)
        })
    }
}

/// Returns a request with the trace context and the deadline.
pub(crate) fn build_request<Q>(
    message: Q,
    trace: &MetadataMap,
    deadline: Option<Instant>,
) -> Request<Q> {
    let mut request = Request::from_parts(trace.clone(), Extensions::default(), message);
    if let Some(deadline) = deadline {
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    request
}

/// Returns the current trace context, written by the global propagator; empty without the feature.
pub(crate) fn trace() -> MetadataMap {
    #[cfg(feature = "opentelemetry")]
    {
        let mut headers = std::collections::HashMap::<String, String>::new();
        opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.inject(&mut headers);
        });
        tonic::codegen::http::HeaderMap::try_from(&headers)
            .map(MetadataMap::from_headers)
            .unwrap_or_default()
    }
    #[cfg(not(feature = "opentelemetry"))]
    MetadataMap::default()
}
