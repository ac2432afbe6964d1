//! The verbs of `ruvd.v1.SessionService`, and the connection that they share.

use std::{env, future::Future, time::Duration};

use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::call::{Call, within};
use crate::service_config::Rule;
use crate::v1::session_service_client::SessionServiceClient;
use crate::v1::*;
use crate::{Batch, Completion, Error, tracing};

/// Where the daemon is if nobody says: `host:port`, or `unix:PATH`.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

const RECONNECT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
// An error that names many wrong fields is longer than the usual 16 KiB of headers.
const MAX_HEADER_BYTES: u32 = 64 << 10;

type Stub = SessionServiceClient<Channel>;

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
            .map_err(|_| {
                let message = format!("{address:?} is neither host:port nor unix:PATH");
                Error::local(Code::InvalidArgument, message)
            })?
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_lazy();
        Ok(Self {
            // Sizes are the daemon's to limit: its refusal says why.
            stub: Stub::new(channel).max_decoding_message_size(usize::MAX),
            reconnect: RECONNECT,
        })
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
        let send = |mut to: Stub, request| async move { to.create_session(request).await };
        let response = self.call("CreateSession", request, send).await?;
        Ok(response.session.unwrap_or_default())
    }

    /// Read one session, without its messages.
    pub async fn get(&self, session_id: impl Into<String>) -> Result<Session, Error> {
        self.view(session_id.into(), SessionView::Basic).await
    }

    /// Read one session with all messages of its history.
    pub async fn get_full(&self, session_id: impl Into<String>) -> Result<Session, Error> {
        self.view(session_id.into(), SessionView::Full).await
    }

    /// All sessions, or those that `label_filter` leaves, in the order of their creation and without
    /// their messages; page after page is read.
    pub async fn list(&self, mut request: ListSessionsRequest) -> Result<Vec<Session>, Error> {
        let send = |mut to: Stub, request| async move { to.list_sessions(request).await };
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
        let send = |mut to: Stub, request| async move { to.update_session(request).await };
        let response = self.call("UpdateSession", request, send).await?;
        Ok(response.session.unwrap_or_default())
    }

    /// Commit messages without generating, once the turns before are done.
    pub async fn append(&self, request: AppendMessagesRequest) -> Result<Session, Error> {
        let send = |mut to: Stub, request| async move { to.append_messages(request).await };
        let response = self.call("AppendMessages", request, send).await?;
        Ok(response.session.unwrap_or_default())
    }

    /// Make a session that begins with the first exchanges of another one, or with all.
    pub async fn fork(&self, request: ForkSessionRequest) -> Result<Session, Error> {
        let send = |mut to: Stub, request| async move { to.fork_session(request).await };
        let response = self.call("ForkSession", request, send).await?;
        Ok(response.session.unwrap_or_default())
    }

    /// Delete a session with its messages. What runs in it fails with `SESSION_ENDED`.
    pub async fn end(&self, session_id: impl Into<String>) -> Result<(), Error> {
        let request = EndSessionRequest { session_id: session_id.into(), allow_missing: false };
        let send = |mut to: Stub, request| async move { to.end_session(request).await };
        self.call("EndSession", request, send).await.map(drop)
    }

    /// Which models the engine offers, and which one answers where a call names none.
    pub async fn models(&self) -> Result<ListModelsResponse, Error> {
        let send = |mut to: Stub, request| async move { to.list_models(request).await };
        self.call("ListModels", ListModelsRequest {}, send).await
    }

    /// What the daemon has measured since it started.
    pub async fn metrics(&self) -> Result<SessionMetrics, Error> {
        let send = |mut to: Stub, request| async move { to.get_session_metrics(request).await };
        let request = GetSessionMetricsRequest {};
        let response = self.call("GetSessionMetrics", request, send).await?;
        Ok(response.metrics.unwrap_or_default())
    }

    /// Answer the new messages, in a session or stateless; a text is one message of the user.
    ///
    /// A request id and a grace of 10 s are added where the request has none.
    pub fn complete(&self, request: impl Into<CompleteRequest>) -> Completion {
        Completion::new(Call::complete(self.clone(), request.into()))
    }

    /// Read on a completion that somebody else began, after the event of that number.
    ///
    /// Name it by its id, or by the session and the request id that it began with.
    pub fn resume(&self, request: ResumeCompletionRequest) -> Completion {
        Completion::new(Call::resume(self.clone(), request))
    }

    /// Stop a completion, whoever began it, and return when it has ended. With `keep_partial`, what
    /// there is of its answer is committed.
    pub async fn cancel(&self, request: CancelCompletionRequest) -> Result<(), Error> {
        let send = |mut to: Stub, request| async move { to.cancel_completion(request).await };
        self.call("CancelCompletion", request, send).await.map(drop)
    }

    /// Answer many requests; each outcome comes as soon as it is there.
    ///
    /// At most `max_concurrency` run side by side, 0 is the daemon's default. A request id is added
    /// to each item that has none.
    pub fn batch<I>(&self, items: I, max_concurrency: u16) -> Batch
    where
        I: IntoIterator<Item: Into<CompleteRequest>>,
    {
        let items = items.into_iter().map(|item| item.into().named());
        let request = BatchCompleteRequest {
            items: items.collect(),
            max_concurrency: max_concurrency.into(),
        };
        Batch::new(self.clone(), request)
    }

    /// A request with what goes out beside the message.
    pub(crate) fn request<Q>(
        message: Q,
        trace: &MetadataMap,
        deadline: Option<Instant>,
    ) -> Request<Q> {
        let mut request = Request::new(message);
        *request.metadata_mut() = trace.clone();
        if let Some(deadline) = deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        request
    }

    async fn view(&self, session_id: String, view: SessionView) -> Result<Session, Error> {
        let view = view.into();
        let send = |mut to: Stub, request| async move { to.get_session(request).await };
        let request = GetSessionRequest { session_id, view };
        let response = self.call("GetSession", request, send).await?;
        Ok(response.session.unwrap_or_default())
    }

    /// One call, with the time-out and the retries that the service config gives its method.
    async fn call<Q: Clone, R, F>(
        &self,
        method: &str,
        message: Q,
        send: impl Fn(Stub, Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let rule = Rule::of(method);
        let trace = tracing::headers();
        let deadline = rule.timeout.map(|timeout| Instant::now() + timeout);
        let mut attempts = 0;
        loop {
            let request = Self::request(message.clone(), &trace, deadline);
            let error = match within(deadline, send(self.stub.clone(), request)).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(error) => error,
            };
            attempts += 1;
            match rule.pause(error.code, attempts) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::net::{TcpListener, UnixListener};

    /// An address where every connection is closed at once, and how many there were.
    async fn closing() -> (Client, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&listener.local_addr().unwrap().to_string()).unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        (client, count)
    }

    /// A read is tried as often as the service config says, and a lost connection is UNAVAILABLE.
    #[tokio::test]
    async fn reads_are_tried_four_times() {
        let (client, count) = closing().await;
        let error = client.models().await.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, ""));
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }

    /// What writes is not repeated: nobody knows whether it was done.
    #[tokio::test]
    async fn writes_are_tried_once() {
        let (client, count) = closing().await;
        assert_eq!(client.end("ada").await.unwrap_err().code, Code::Unavailable);
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    /// A completion is tried until the time to reconnect is over, and ends with the last error.
    #[tokio::test]
    async fn completions_are_tried_for_a_while() {
        let (client, count) = closing().await;
        let client = client.with_reconnect(Duration::from_millis(300));
        let begun = Instant::now();
        let error = client.complete("hello").text().await.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, ""));
        assert!(begun.elapsed() >= Duration::from_millis(300));
        // At once, and after 50, 100 and the 150 ms that are left.
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }

    /// `unix:PATH` connects to the socket at that path.
    #[tokio::test]
    async fn unix_sockets_are_addresses() {
        let path = env::temp_dir().join(format!("ruvd-client-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&format!("unix:{}", path.display())).unwrap();
        let call = tokio::spawn(async move { client.end("ada").await });
        let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
        call.abort();
        std::fs::remove_file(&path).unwrap();
        accepted.unwrap().unwrap();
    }

    /// What is no address is refused before anything is sent.
    #[tokio::test]
    async fn nonsense_is_no_address() {
        assert_eq!(Client::new("not an address").unwrap_err().code, Code::InvalidArgument);
    }
}
