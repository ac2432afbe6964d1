//! The client, with the methods of `ruvd.v1.SessionService`.

use std::{sync::LazyLock, time::Duration};

use futures_util::future::ready;
use futures_util::stream::{Stream, StreamExt, TryStreamExt, once};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use crate::connection::{Stub, build_request, trace};
use crate::parts::MessageParts;
use crate::v1::*;
use crate::{ClientBuilder, Completion, Error, completion::identify};

const GRACE: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };
// The most messages of a history that the daemon returns at once.
const PAGE_SIZE: i32 = 1000;

// tonic does not support service configs, so `Client::call` implements this one.
static SERVICE_CONFIG: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../service_config.json")).expect("valid JSON")
});

/// A client of ruvd, which connects at its first call and reconnects when the connection is lost.
///
/// Create one and clone it: the clones share the connection.
///
/// Every method fails with [`Error`]. Read-only calls are retried while there is no daemon, as set
/// by the service config of all clients.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) stub: Stub,
    pub(crate) reconnect: Duration,
}

#[allow(clippy::missing_errors_doc)] // Documented at the type.
impl Client {
    /// Returns the settings for a new client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Creates a client of the daemon at `host:port` or `unix:PATH`, with all other settings from
    /// the environment. It needs a tokio runtime only at its first call.
    ///
    /// Fails with INVALID_ARGUMENT as [`ClientBuilder::build`] does. It does not connect: whether
    /// the daemon is there shows at the first call.
    pub fn new(address: &str) -> Result<Self, Error> {
        Self::builder().address(address).build()
    }

    /// Creates a client with all settings from the environment. The daemon is at `RUVD_ADDRESS` or
    /// [`DEFAULT_ADDRESS`](crate::DEFAULT_ADDRESS).
    pub fn from_env() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Sets how long the client tries to resume a broken stream. The default of 10 s is also how
    /// long the daemon keeps the completion running.
    #[must_use]
    pub fn with_reconnect(self, reconnect: Duration) -> Self {
        Self { reconnect, ..self }
    }

    /// Creates a session before its first turn, with a system prompt, labels or a history.
    pub async fn create(&self, request: CreateSessionRequest) -> Result<Session, Error> {
        let send = async |mut stub: Stub, request| stub.create_session(request).await;
        Ok(self.call("CreateSession", request, send).await?.session.unwrap_or_default())
    }

    /// Returns one session, including its messages if the view is full.
    ///
    /// A history is read in as many calls as its size requires. If the session ends meanwhile, the
    /// error is `SESSION_NOT_FOUND`.
    pub async fn get(&self, id: impl Into<String>, view: SessionView) -> Result<Session, Error> {
        let allow_message_parts = view == SessionView::Full;
        let page_size = if allow_message_parts { PAGE_SIZE } else { 0 };
        let mut request = GetSessionRequest {
            session_id: id.into(),
            view: view.into(),
            page_size,
            allow_message_parts,
            ..Default::default()
        };
        let send = async |mut stub: Stub, request| stub.get_session(request).await;
        let mut messages = Vec::new();
        let mut parts = MessageParts::default();
        loop {
            let page = self.call("GetSession", request.clone(), send).await?;
            let mut session = page.session.unwrap_or_default();
            messages.append(&mut session.messages);
            if let Some(part) = page.message_part {
                parts.add(&part)?;
                messages.extend(parts.take());
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return Ok(Session { messages, ..session });
            }
        }
    }

    /// Returns all sessions that match `label_filter`, in the order of their creation and without
    /// their messages.
    pub async fn list(&self, mut request: ListSessionsRequest) -> Result<Vec<Session>, Error> {
        let send = async |mut stub: Stub, request| stub.list_sessions(request).await;
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

    /// Changes the labels, the idle timeout or the context window of a session, after the turns
    /// before it.
    pub async fn update(&self, request: UpdateSessionRequest) -> Result<Session, Error> {
        let send = async |mut stub: Stub, request| stub.update_session(request).await;
        Ok(self.call("UpdateSession", request, send).await?.session.unwrap_or_default())
    }

    /// Commits messages without generating an answer, after the turns before it.
    pub async fn append(&self, request: AppendMessagesRequest) -> Result<Session, Error> {
        let send = async |mut stub: Stub, request| stub.append_messages(request).await;
        Ok(self.call("AppendMessages", request, send).await?.session.unwrap_or_default())
    }

    /// Creates a session that starts with another one's first exchanges, by default all.
    pub async fn fork(&self, request: ForkSessionRequest) -> Result<Session, Error> {
        let send = async |mut stub: Stub, request| stub.fork_session(request).await;
        Ok(self.call("ForkSession", request, send).await?.session.unwrap_or_default())
    }

    /// Deletes a session and its messages. Its running completions fail with `SESSION_ENDED`.
    pub async fn end(&self, session_id: impl Into<String>) -> Result<(), Error> {
        let request = EndSessionRequest { session_id: session_id.into(), allow_missing: false };
        let send = async |mut stub: Stub, request| stub.end_session(request).await;
        self.call("EndSession", request, send).await.map(drop)
    }

    /// Returns the models that the engine offers, and the default model.
    pub async fn models(&self) -> Result<ListModelsResponse, Error> {
        let send = async |mut stub: Stub, request| stub.list_models(request).await;
        self.call("ListModels", ListModelsRequest {}, send).await
    }

    /// Returns the daemon's measurements since it started.
    pub async fn metrics(&self) -> Result<SessionMetrics, Error> {
        let send = async |mut stub: Stub, request| stub.get_session_metrics(request).await;
        let response = self.call("GetSessionMetrics", GetSessionMetricsRequest {}, send).await?;
        Ok(response.metrics.unwrap_or_default())
    }

    /// Stops any client's completion and returns when it has ended. With `keep_partial`, the part
    /// of the answer generated so far is committed.
    pub async fn cancel(&self, request: CancelCompletionRequest) -> Result<(), Error> {
        let send = async |mut stub: Stub, request| stub.cancel_completion(request).await;
        self.call("CancelCompletion", request, send).await.map(drop)
    }

    /// Returns a completion of the new messages, stateless if the request names no session. A text
    /// is one user message.
    ///
    /// A request id and a disconnect grace of 10 s are added if the request has none.
    pub fn complete(&self, request: impl Into<CompleteRequest>) -> Completion {
        let mut request = with_request_id(request.into());
        request.disconnect_grace.get_or_insert(GRACE);
        let target = identify(&request);
        Completion::new(self.stub.clone(), self.reconnect, Some(request), target)
    }

    /// Continues to read a completion, from the event after `after_sequence` on. It is identified
    /// by its id, or by the session and the request id with which it was started.
    pub fn resume(&self, request: ResumeCompletionRequest) -> Completion {
        Completion::new(self.stub.clone(), self.reconnect, None, request)
    }

    /// Runs many completions in one call, which is made when the stream is first polled.
    ///
    /// Each result arrives as soon as it is available, and the summary last. A request id is added
    /// to each item that has none; with your own ids, a batch that is repeated after an error runs
    /// only the unfinished items. Dropping the stream cancels the unfinished items.
    pub fn batch(
        &self,
        mut request: BatchCompleteRequest,
    ) -> impl Stream<Item = Result<batch_complete_response::Event, Error>> + Send + Unpin + use<>
    {
        request.items = request.items.into_iter().map(with_request_id).collect();
        let request = build_request(request, &trace(), None);
        let mut stub = self.stub.clone();
        let mut parts = MessageParts::default();
        once(async move { stub.batch_complete(request).await })
            .map_ok(Response::into_inner)
            .try_flatten()
            .err_into()
            .try_filter_map(move |response| ready(parts.join_batch(response.event)))
            .boxed()
    }

    /// Makes a call with the timeout and the retries that the service config sets for its method.
    async fn call<Q: Clone, R>(
        &self,
        method: &str,
        message: Q,
        send: impl AsyncFn(Stub, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let config = method_config(method);
        let policy = &config["retryPolicy"];
        let trace = trace();
        let attempts = async {
            let multiplier = policy["backoffMultiplier"].as_f64().unwrap_or(1.0);
            let max_pause = seconds(&policy["maxBackoff"]).unwrap_or_default();
            let mut pause = seconds(&policy["initialBackoff"]).unwrap_or_default();
            let mut remaining = policy["maxAttempts"].as_u64().unwrap_or(1);
            loop {
                let request = build_request(message.clone(), &trace, None);
                let error = match send(self.stub.clone(), request).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) => Error::from(status),
                };
                remaining -= 1;
                if remaining == 0 || !contains_code(&policy["retryableStatusCodes"], error.code) {
                    return Err(error);
                }
                sleep(pause).await;
                pause = pause.mul_f64(multiplier).min(max_pause);
            }
        };
        match seconds(&config["timeout"]) {
            Some(limit) => timeout(limit, attempts).await.unwrap_or(Err(Error::timed_out())),
            None => attempts.await,
        }
    }
}

/// Returns the service config's entry for a method of `ruvd.v1.SessionService`, or null.
fn method_config(method: &str) -> &'static Value {
    let mut configs = SERVICE_CONFIG["methodConfig"].as_array().into_iter().flatten();
    let config = configs.find(|config| {
        let mut names = config["name"].as_array().into_iter().flatten();
        names.any(|name| name["method"] == method)
    });
    config.unwrap_or(&Value::Null)
}

/// Parses a Duration in its JSON form, `"0.1s"`.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether the list contains the code's name, which is `UNAVAILABLE` there and `Unavailable` here.
fn contains_code(codes: &Value, code: Code) -> bool {
    let name = format!("{code:?}").to_uppercase();
    let mut codes = codes.as_array().into_iter().flatten().filter_map(Value::as_str);
    codes.any(|listed| listed.replace('_', "") == name)
}

/// Adds a request id, so that the request can be repeated without generating twice.
fn with_request_id(mut request: CompleteRequest) -> CompleteRequest {
    if request.request_id.is_empty() {
        request.request_id = Uuid::new_v4().to_string();
    }
    request
}
