//! The client, with the methods of `ruvd.v1.SessionService`.

use std::{iter, sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use uuid::Uuid;

use crate::batch::Batch;
use crate::calls::{Method, call};
use crate::completion::{Completion, identify};
use crate::connections::{Connections, Stub};
use crate::error::Error;
use crate::parts::MessageParts;
use crate::requests::{build_request, trace};
use crate::v1::{
    AppendMessagesRequest, BatchCompleteRequest, CancelCompletionRequest, CompactSessionRequest,
    CompactSessionResponse, CompleteRequest, CreateSessionRequest, EndSessionRequest,
    ForkSessionRequest, GetServerInfoRequest, GetServerInfoResponse, GetSessionMetricsRequest,
    GetSessionRequest, ListModelsRequest, ListModelsResponse, ListSessionsRequest,
    ResumeCompletionRequest, Session, SessionMetrics, SessionView, UpdateSessionRequest,
};

const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
const GRACE: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };
// The most messages of a history that the daemon returns at once.
const PAGE_SIZE: i32 = 1000;

/// A client of ruvd, which connects at its first call and reconnects when the connection is lost.
///
/// Create one and clone it: the clones share the connection.
///
/// Every method fails with [`Error`]. Read-only calls are retried while there is no daemon, as set
/// by the service config of all clients.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) connections: Arc<Connections>,
    pub(crate) reconnect: Duration,
}

#[allow(clippy::missing_errors_doc)] // Documented at the type.
impl Client {
    /// Sets how long the client tries to resume a broken stream. The default of 10 s is also how
    /// long the daemon keeps the completion running.
    #[must_use]
    pub fn with_reconnect(self, reconnect: Duration) -> Self {
        Self { reconnect, ..self }
    }

    /// Creates a session before its first turn, with a system prompt, labels or a history.
    pub async fn create(&self, mut request: CreateSessionRequest) -> Result<Session, Error> {
        self.fill_request_id(&mut request.request_id);
        let send = async |mut stub: Stub, request| stub.create_session(request).await;
        let id = request.session_id.clone();
        Ok(self.call("CreateSession", &id, request, send).await?.session.unwrap_or_default())
    }

    /// Returns one session, including its messages if the view is full.
    ///
    /// A history is read in as many calls as its size requires. If the session ends meanwhile, the
    /// error is `SESSION_NOT_FOUND`.
    pub async fn get(&self, id: impl Into<String>, view: SessionView) -> Result<Session, Error> {
        let allow_message_parts = view == SessionView::Full;
        let page_size = if allow_message_parts { PAGE_SIZE } else { 0 };
        let id = id.into();
        let mut request = GetSessionRequest {
            session_id: id.clone(),
            view: view.into(),
            page_size,
            allow_message_parts,
            ..Default::default()
        };
        let send = async |mut stub: Stub, request| stub.get_session(request).await;
        let mut messages = Vec::new();
        let mut parts = MessageParts::default();
        loop {
            let page = self.call("GetSession", &id, request.clone(), send).await?;
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
            let page = self.call("ListSessions", "", request.clone(), send).await?;
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
        let id = request.session_id.clone();
        Ok(self.call("UpdateSession", &id, request, send).await?.session.unwrap_or_default())
    }

    /// Commits messages without generating an answer, after the turns before it.
    pub async fn append(&self, mut request: AppendMessagesRequest) -> Result<Session, Error> {
        self.fill_request_id(&mut request.request_id);
        let send = async |mut stub: Stub, request| stub.append_messages(request).await;
        let id = request.session_id.clone();
        Ok(self.call("AppendMessages", &id, request, send).await?.session.unwrap_or_default())
    }

    /// Creates a session that starts with another one's first exchanges, by default all.
    pub async fn fork(&self, mut request: ForkSessionRequest) -> Result<Session, Error> {
        self.fill_request_id(&mut request.request_id);
        let send = async |mut stub: Stub, request| stub.fork_session(request).await;
        let id = request.session_id.clone();
        Ok(self.call("ForkSession", &id, request, send).await?.session.unwrap_or_default())
    }

    /// Summarises the exchanges before the last ones, which later prompts no longer have. With
    /// `dry_run` it only says what that would do.
    pub async fn compact(
        &self,
        request: CompactSessionRequest,
    ) -> Result<CompactSessionResponse, Error> {
        let send = async |mut stub: Stub, request| stub.compact_session(request).await;
        let id = request.session_id.clone();
        self.call("CompactSession", &id, request, send).await
    }

    /// Deletes a session and its messages. Its running completions fail with `SESSION_ENDED`.
    pub async fn end(&self, session_id: impl Into<String>) -> Result<(), Error> {
        self.end_session(session_id.into(), false).await
    }

    /// Like [`end`](Self::end), but succeeds also if there is no such session.
    pub async fn end_if_exists(&self, session_id: impl Into<String>) -> Result<(), Error> {
        self.end_session(session_id.into(), true).await
    }

    async fn end_session(&self, id: String, allow_missing: bool) -> Result<(), Error> {
        let request = EndSessionRequest { session_id: id.clone(), allow_missing };
        let send = async |mut stub: Stub, request| stub.end_session(request).await;
        self.call("EndSession", &id, request, send).await.map(drop)
    }

    /// Returns the models that the engine offers, and the default model.
    pub async fn models(&self) -> Result<ListModelsResponse, Error> {
        let send = async |mut stub: Stub, request| stub.list_models(request).await;
        self.call("ListModels", "", ListModelsRequest {}, send).await
    }

    /// Returns the daemon's version, features, limits and engines.
    ///
    /// A daemon from before this call fails with [`Code::Unimplemented`].
    pub async fn server_info(&self) -> Result<GetServerInfoResponse, Error> {
        let send = async |mut stub: Stub, request| stub.get_server_info(request).await;
        self.call("GetServerInfo", "", GetServerInfoRequest {}, send).await
    }

    /// Returns the daemon's measurements since it started.
    pub async fn metrics(&self) -> Result<SessionMetrics, Error> {
        let send = async |mut stub: Stub, request| stub.get_session_metrics(request).await;
        let request = GetSessionMetricsRequest {};
        let response = self.call("GetSessionMetrics", "", request, send).await?;
        Ok(response.metrics.unwrap_or_default())
    }

    /// Stops any client's completion and returns when it has ended. With `keep_partial`, the part
    /// of the answer generated so far is committed.
    pub async fn cancel(&self, request: CancelCompletionRequest) -> Result<(), Error> {
        let send = async |mut stub: Stub, request| stub.cancel_completion(request).await;
        let id = request.session_id.clone();
        self.call("CancelCompletion", &id, request, send).await.map(drop)
    }

    /// Returns a completion of the new messages, stateless if the request names no session. A text
    /// is one user message.
    ///
    /// A request id and a disconnect grace of 10 s are added if the request has none.
    pub fn complete(&self, request: impl Into<CompleteRequest>) -> Completion {
        let mut request = with_request_id(request.into());
        request.disconnect_grace.get_or_insert(GRACE);
        let target = identify(&request);
        Completion::new(self.connections.clone(), self.reconnect, Some(request), target)
    }

    /// Continues to read a completion, from the event after `after_sequence` on. It is identified
    /// by its id, or by the session and the request id with which it was started.
    pub fn resume(&self, request: ResumeCompletionRequest) -> Completion {
        Completion::new(self.connections.clone(), self.reconnect, None, request)
    }

    /// Runs many completions. The first call is made when the stream is first polled.
    ///
    /// Each result arrives as soon as it is available, and the summary last. There may be any number
    /// of items: they are split into calls of a size that the daemon accepts. When the connection
    /// breaks, the unfinished items are sent again, for up to a minute without a result. A request id
    /// is added to each item that has none. Dropping the stream cancels the unfinished items.
    pub fn batch(&self, mut request: BatchCompleteRequest) -> Batch {
        request.items = request.items.into_iter().map(with_request_id).collect();
        Batch::new(self.connections.clone(), request)
    }

    /// Returns whether a daemon is ready for turns: one of those at the client's addresses. A daemon
    /// that cannot be reached is not. One that does not answer within 10 s is an error.
    pub async fn health(&self) -> Result<bool, Error> {
        let now = self.connections.now();
        for at in iter::once(now).chain(self.connections.others(now)) {
            let request = HealthCheckRequest { service: "readiness".into() };
            let mut stub = HealthClient::new(self.connections.connection(at));
            let request = build_request(request, &trace(), "", None);
            let answer = timeout(HEALTH_TIMEOUT, stub.check(request)).await;
            match answer.map_err(|_| Error::timed_out())?.map_err(Error::from) {
                Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
                    return Ok(true);
                }
                Err(error) if error.code != Code::Unavailable => return Err(error),
                _ => {}
            }
        }
        Ok(false)
    }

    async fn call<Q: Clone, R: Default>(
        &self,
        name: &'static str,
        session: &str,
        message: Q,
        send: impl AsyncFn(Stub, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        call(&self.connections, Method { name, session }, message, send).await
    }

    /// Gives an id to a request that may be repeated at another address.
    fn fill_request_id(&self, request_id: &mut String) {
        if self.connections.are_several && request_id.is_empty() {
            *request_id = Uuid::new_v4().to_string();
        }
    }
}

/// Adds a request id, so that the request can be repeated without generating twice.
fn with_request_id(mut request: CompleteRequest) -> CompleteRequest {
    if request.request_id.is_empty() {
        request.request_id = Uuid::new_v4().to_string();
    }
    request
}
