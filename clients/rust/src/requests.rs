//! What all requests have in common: the trace context, the session's header and the deadline.

use std::fmt;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request};

const SESSION: &str = "x-ruvd-session-id";
const LONGEST_ID: usize = 128;

/// Metadata that the caller adds to every call. It may be secret, so only its keys are printed.
#[derive(Clone, Default)]
pub(crate) struct OwnMetadata(pub(crate) MetadataMap);

impl fmt::Debug for OwnMetadata {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_list().entries(self.0.as_ref().keys()).finish()
    }
}

/// Returns a request with the trace context, the session's header and the deadline.
///
/// A session id that is no valid one is left to the daemon, whose error names it.
pub(crate) fn build_request<Q>(
    message: Q,
    trace: &MetadataMap,
    session: &str,
    deadline: Option<Instant>,
) -> Request<Q> {
    let mut request = Request::from_parts(trace.clone(), Extensions::default(), message);
    if is_valid(session)
        && let Ok(session) = session.parse()
    {
        request.metadata_mut().insert(SESSION, session);
    }
    if let Some(deadline) = deadline {
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    request
}

fn is_valid(session: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=LONGEST_ID).contains(&session.len()) && session.bytes().all(is_allowed)
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
