//! The verbs of `ruvd.v1.SessionService`, and the connection that they share.

use std::{env, sync::LazyLock, time::Duration};

use futures_util::stream::{Stream, StreamExt, TryStreamExt, once};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Extensions, Request, Response, Status};
use uuid::Uuid;

use crate::v1::session_service_client::SessionServiceClient;
use crate::v1::*;
use crate::{Completion, Error, completion::name_of};

/// Where the daemon is if nobody says: `host:port`, or `unix:PATH`.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

const GRACE: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };
const RECONNECT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
// An error that names many wrong fields is longer than the usual 16 KiB of headers.
const MAX_HEADER_BYTES: u32 = 64 << 10;

// tonic reads no service config, so `Client::call` does what this one says.
static SERVICE_CONFIG: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../service_config.json")).expect("it is JSON")
});

pub(crate) type Stub = SessionServiceClient<Channel>;

/// A connection to ruvd, made when the first call needs it and again when it was lost.
///
/// Make one and clone it: the clones share the connection.
///
/// Every method fails with [`Error`]. Reads are repeated while the daemon is not there, as the
/// service config of all clients says.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) stub: Stub,
    pub(crate) reconnect: Duration,
    pub(crate) runtime: Handle,
}

#[allow(clippy::missing_errors_doc)] // Said once, above.
impl Client {
    /// A connection to an address, `host:port` or `unix:PATH`. Call it within a tokio runtime.
    ///
    /// Fails with INVALID_ARGUMENT where that is no address; whether somebody listens there is
    /// found out by the first call.
    pub fn new(address: &str) -> Result<Self, Error> {
        let uri = match address.starts_with("unix:") {
            true => address.to_owned(),
            false => format!("http://{address}"),
        };
        let channel = Endpoint::from_shared(uri)
            .map_err(|_| Error::local(Code::InvalidArgument, "neither host:port nor unix:PATH"))?
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_lazy();
        // Sizes are the daemon's to limit: its refusal says why.
        let stub = Stub::new(channel).max_decoding_message_size(usize::MAX);
        Ok(Self { stub, reconnect: RECONNECT, runtime: Handle::current() })
    }

    /// A connection to `RUVD_ADDRESS`, else to [`DEFAULT_ADDRESS`].
    pub fn from_env() -> Result<Self, Error> {
        let address = env::var("RUVD_ADDRESS").ok().filter(|address| !address.is_empty());
        Self::new(address.as_deref().unwrap_or(DEFAULT_ADDRESS))
    }

    /// The same connection, where a completion that breaks is tried to be resumed for this long
    /// instead of 10 s, which is as long as the daemon waits for it.
    #[must_use]
    pub fn with_reconnect(self, reconnect: Duration) -> Self {
        Self { reconnect, ..self }
    }

    /// Make a session before its first turn, to give it a system prompt, labels or a history.
    pub async fn create(&self, request: CreateSessionRequest) -> Result<Session, Error> {
        let send = async |mut to: Stub, request| to.create_session(request).await;
        Ok(self.call("CreateSession", request, send).await?.session.unwrap_or_default())
    }

    /// Read one session, with the messages of its history if the view is full.
    pub async fn get(&self, id: impl Into<String>, view: SessionView) -> Result<Session, Error> {
        let request = GetSessionRequest { session_id: id.into(), view: view.into() };
        let send = async |mut to: Stub, request| to.get_session(request).await;
        Ok(self.call("GetSession", request, send).await?.session.unwrap_or_default())
    }

    /// All sessions, or those that `label_filter` leaves, in the order of their creation and
    /// without their messages.
    pub async fn list(&self, mut request: ListSessionsRequest) -> Result<Vec<Session>, Error> {
        let send = async |mut to: Stub, request| to.list_sessions(request).await;
        let mut sessions = Vec::new();
        loop {
            let page = self.call("ListSessions", request.clone(), send).await?;
            sessions.extend(page.sessions);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(sessions);
            }
        }
    }

    /// Change the labels, the idle time-out or the context window of a session, once the turns
    /// before are done.
    pub async fn update(&self, request: UpdateSessionRequest) -> Result<Session, Error> {
        let send = async |mut to: Stub, request| to.update_session(request).await;
        Ok(self.call("UpdateSession", request, send).await?.session.unwrap_or_default())
    }

    /// Commit messages without generating, once the turns before are done.
    pub async fn append(&self, request: AppendMessagesRequest) -> Result<Session, Error> {
        let send = async |mut to: Stub, request| to.append_messages(request).await;
        Ok(self.call("AppendMessages", request, send).await?.session.unwrap_or_default())
    }

    /// Make a session that begins with the first exchanges of another one, or with all.
    pub async fn fork(&self, request: ForkSessionRequest) -> Result<Session, Error> {
        let send = async |mut to: Stub, request| to.fork_session(request).await;
        Ok(self.call("ForkSession", request, send).await?.session.unwrap_or_default())
    }

    /// Delete a session with its messages. What runs in it fails with `SESSION_ENDED`.
    pub async fn end(&self, session_id: impl Into<String>) -> Result<(), Error> {
        let request = EndSessionRequest { session_id: session_id.into(), allow_missing: false };
        let send = async |mut to: Stub, request| to.end_session(request).await;
        self.call("EndSession", request, send).await.map(drop)
    }

    /// Which models the engine offers, and which one answers where a call names none.
    pub async fn models(&self) -> Result<ListModelsResponse, Error> {
        let send = async |mut to: Stub, request| to.list_models(request).await;
        self.call("ListModels", ListModelsRequest {}, send).await
    }

    /// What the daemon has measured since it started.
    pub async fn metrics(&self) -> Result<SessionMetrics, Error> {
        let send = async |mut to: Stub, request| to.get_session_metrics(request).await;
        let response = self.call("GetSessionMetrics", GetSessionMetricsRequest {}, send).await?;
        Ok(response.metrics.unwrap_or_default())
    }

    /// Stop a completion, whoever began it, and return when it has ended. With `keep_partial`, what
    /// there is of its answer is committed.
    pub async fn cancel(&self, request: CancelCompletionRequest) -> Result<(), Error> {
        let send = async |mut to: Stub, request| to.cancel_completion(request).await;
        self.call("CancelCompletion", request, send).await.map(drop)
    }

    /// Answer the new messages, in a session or stateless; a text is one message of the user.
    ///
    /// A request id and a grace of 10 s are added where the request has none.
    pub fn complete(&self, request: impl Into<CompleteRequest>) -> Completion {
        let mut request = named(request.into());
        request.disconnect_grace.get_or_insert(GRACE);
        let name = name_of(&request);
        Completion::new(self.clone(), Some(request), name)
    }

    /// Read on a completion that somebody else began, after the event of that number.
    ///
    /// Name it by its id, or by the session and the request id that it began with.
    pub fn resume(&self, request: ResumeCompletionRequest) -> Completion {
        Completion::new(self.clone(), None, request)
    }

    /// Answer many requests in one call, which is made when the stream is polled first.
    ///
    /// The outcome of each comes as soon as it is there, last comes the summary. A request id is
    /// added to each item that has none: with ids of your own, a batch that is repeated after an
    /// error runs only what was not finished. Drop the stream to cancel what has no outcome yet.
    pub fn batch(
        &self,
        mut request: BatchCompleteRequest,
    ) -> impl Stream<Item = Result<batch_complete_response::Event, Error>> + Send + Unpin + use<>
    {
        request.items = request.items.into_iter().map(named).collect();
        let request = outgoing(request, &trace(), None);
        let mut stub = self.stub.clone();
        once(async move { stub.batch_complete(request).await })
            .map_ok(Response::into_inner)
            .try_flatten()
            .try_filter_map(async |response| Ok(response.event))
            .err_into()
            .boxed()
    }

    /// One call, with the time-out and the retries that the service config gives its method.
    async fn call<Q: Clone, R>(
        &self,
        method: &str,
        message: Q,
        send: impl AsyncFn(Stub, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let config = config_of(method);
        let policy = &config["retryPolicy"];
        let trace = trace();
        let tries = async {
            let growth = policy["backoffMultiplier"].as_f64().unwrap_or(1.0);
            let longest = seconds(&policy["maxBackoff"]).unwrap_or_default();
            let mut pause = seconds(&policy["initialBackoff"]).unwrap_or_default();
            let mut left = policy["maxAttempts"].as_u64().unwrap_or(1);
            loop {
                let request = outgoing(message.clone(), &trace, None);
                let error = match send(self.stub.clone(), request).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) => Error::from(status),
                };
                left -= 1;
                if left == 0 || !names(&policy["retryableStatusCodes"], error.code) {
                    return Err(error);
                }
                sleep(pause).await;
                pause = pause.mul_f64(growth).min(longest);
            }
        };
        match seconds(&config["timeout"]) {
            Some(limit) => timeout(limit, tries).await.unwrap_or_else(|_| Err(Error::late())),
            None => tries.await,
        }
    }
}

/// What the service config says of a method of `ruvd.v1.SessionService`; null if nothing.
fn config_of(method: &str) -> &'static Value {
    let mut configs = SERVICE_CONFIG["methodConfig"].as_array().into_iter().flatten();
    let config = configs.find(|config| {
        let mut names = config["name"].as_array().into_iter().flatten();
        names.any(|name| name["method"] == method)
    });
    config.unwrap_or(&Value::Null)
}

/// A Duration as JSON writes it, `"0.1s"`.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether the code is one of these names; `UNAVAILABLE` there is `Unavailable` here.
fn names(codes: &Value, code: Code) -> bool {
    let name = format!("{code:?}").to_uppercase();
    let mut codes = codes.as_array().into_iter().flatten().filter_map(Value::as_str);
    codes.any(|each| each.replace('_', "") == name)
}

/// The request with a request id, so that it can be repeated without generating twice.
fn named(mut request: CompleteRequest) -> CompleteRequest {
    if request.request_id.is_empty() {
        request.request_id = Uuid::new_v4().to_string();
    }
    request
}

/// The request with what goes out beside the message.
pub(crate) fn outgoing<Q>(
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

/// What the global propagator writes of the current trace; nothing without the feature.
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
