//! A completion, received over one or several streams, by the rules of clients/CONFORMANCE.md.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::{fmt, future::Future, pin::Pin, time::Duration};

use futures_util::stream::{BoxStream, Stream, StreamExt, TryStreamExt, once, poll_fn};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Response, Status, Streaming, metadata::MetadataMap};

use crate::connections::Connections;
use crate::error::{Error, is_left};
use crate::parts::MessageParts;
use crate::requests::{build_request, trace};
use crate::tries::{Failure, MAX_RESTARTS, Tries};
use crate::v1::completion_event::Event;
use crate::v1::delta::Part;
use crate::v1::{
    CancelCompletionRequest, CompleteRequest, CompletionEvent, Delta, ErrorReason, Finished,
    OnDisconnect, ResumeCompletionRequest, Started,
};

const CONNECTION_ERRORS: [Code; 4] =
    [Code::Unavailable, Code::Internal, Code::Unknown, Code::Cancelled];
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
const CONTRADICTION: &str = "the answer contradicts the text received before";

type Events = BoxStream<'static, Result<CompletionEvent, Error>>;

/// A running completion, which is a stream of its text.
///
/// The call is made at the first poll. A stream that breaks without an error of ruvd's is resumed
/// within 10 s: by `ResumeCompletion`, or before the first event by the same request again, which is
/// not generated twice. Each part of the text is delivered once, or the stream ends with an error.
///
/// Dropping it early cancels the completion, without waiting, and leaves the session unchanged.
/// `Client::cancel` waits for the end and can commit the part generated so far.
#[must_use = "the call is made when it is polled"]
pub struct Completion {
    tries: Tries,
    reconnect: Duration,
    trace: MetadataMap,
    deadline: Option<Instant>,
    /// None for a resumed completion.
    request: Option<CompleteRequest>,
    /// Identifies the completion and the last event received.
    target: ResumeCompletionRequest,
    /// Empty if there is none or it is not known.
    session: String,
    /// Whether the caller gets nothing before the end.
    collects: bool,
    /// None after the end.
    events: Option<Events>,
    /// Whether the events come from `ResumeCompletion`.
    resumed: bool,
    /// Whether there is a completion to cancel.
    running: bool,
    /// The runtime on which it was polled, for a call that cancels it.
    runtime: Option<Handle>,
    /// The text received; None if its beginning is unknown.
    text: Option<String>,
    /// The text of the whole answer beyond it.
    missing_text: String,
    started: Option<Started>,
    finished: Option<Finished>,
    /// The parts of the whole message, if it is large.
    parts: MessageParts,
}

impl Completion {
    pub(crate) fn new(
        connections: Arc<Connections>,
        reconnect: Duration,
        request: Option<CompleteRequest>,
        target: ResumeCompletionRequest,
    ) -> Self {
        let mut completion = Self {
            tries: Tries::new(connections),
            reconnect,
            trace: trace(),
            deadline: None,
            request,
            text: (target.after_sequence == 0).then(String::new),
            session: target.session_id.clone(),
            target,
            collects: false,
            events: None,
            resumed: false,
            running: false,
            runtime: None,
            missing_text: String::new(),
            started: None,
            finished: None,
            parts: MessageParts::default(),
        };
        completion.open_stream(None);
        completion
    }

    /// Sets a timeout for the whole answer, which starts now.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Some(Instant::now() + timeout);
        if self.events.is_some() {
            self.open_stream(None);
        }
        self
    }

    /// Returns the numbered events that have not been read yet.
    pub fn events(&mut self) -> impl Stream<Item = Result<CompletionEvent, Error>> + Unpin {
        poll_fn(|context| self.poll_event(context))
    }

    /// Waits for the end and returns the whole text, including the parts read before.
    ///
    /// # Errors
    ///
    /// The error of the completion, or UNKNOWN if that error was read before.
    pub async fn text(&mut self) -> Result<String, Error> {
        self.collects = self.last_sequence() == 0; // Otherwise something was delivered.
        while self.events().try_next().await?.is_some() {}
        let message = self.finished.as_ref().and_then(|end| end.message.as_ref());
        let text = message.map(|message| message.content.clone());
        text.ok_or_else(|| Error::local(Code::Unknown, "there is no answer"))
    }

    /// The first event, with the completion's id; None until it has been read, and for an answer of
    /// which only the end is left.
    #[must_use]
    pub fn started(&self) -> Option<&Started> {
        self.started.as_ref()
    }

    /// The whole answer with its usage and timings; None until it has been read to its end.
    #[must_use]
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// The sequence number of the last event read; 0 before the first.
    #[must_use]
    pub fn last_sequence(&self) -> i64 {
        self.target.after_sequence
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<CompletionEvent, Error>>> {
        if self.runtime.is_none() {
            self.runtime = Handle::try_current().ok();
        }
        while let Some(events) = &mut self.events {
            self.running = true;
            let outcome = match ready!(events.poll_next_unpin(context)) {
                // Reading on after Finished lets the call end normally, not cancelled.
                _ if self.finished.is_some() => break,
                Some(Ok(CompletionEvent { event: Some(Event::MessagePart(part)), .. })) => {
                    self.tries.event_received();
                    self.parts.add(&part).map(|()| None)
                }
                Some(Ok(event)) => {
                    self.tries.event_received();
                    self.handle_event(event).map(Some)
                }
                Some(Err(error)) => self.handle_failure(error),
                None => {
                    self.handle_failure(Error::local(Code::Unavailable, "the stream ended early"))
                }
            };
            if outcome.is_err() {
                self.running = false;
                self.events = None;
            }
            if let Some(outcome) = outcome.transpose() {
                return Poll::Ready(Some(outcome));
            }
        }
        self.events = None;
        Poll::Ready(None)
    }

    /// Opens a new stream, whose call is made after the pause when it is polled.
    fn open_stream(&mut self, pause: Option<Duration>) {
        let mut stub = self.tries.connections.stub(self.tries.at);
        let request = self.request.clone().filter(|_| self.target.completion_id.is_empty());
        self.resumed = request.is_none();
        let events = if let Some(request) = request {
            let request = build_request(request, &self.trace, &self.session, self.deadline);
            let call = async move { stub.complete(request).await };
            event_stream(pause, call, |response| response.event)
        } else {
            let request =
                build_request(self.target.clone(), &self.trace, &self.session, self.deadline);
            let call = async move { stub.resume_completion(request).await };
            event_stream(pause, call, |response| response.event)
        };
        self.events = Some(match self.deadline {
            Some(deadline) => events.take_until(async move { sleep_until(deadline).await }).boxed(),
            None => events,
        });
    }

    fn handle_event(&mut self, mut event: CompletionEvent) -> Result<CompletionEvent, Error> {
        if let Some(Event::Finished(finished)) = &mut event.event {
            self.parts.join(finished)?;
        }
        let after_sequence = event.sequence;
        self.target.after_sequence = after_sequence;
        match &event.event {
            Some(Event::Started(started)) => {
                if !started.session_id.is_empty() {
                    self.session.clone_from(&started.session_id);
                }
                self.started = Some(started.clone());
                let completion_id = started.completion_id.clone();
                self.target =
                    ResumeCompletionRequest { completion_id, after_sequence, ..Default::default() };
            }
            Some(Event::Delta(Delta { part: Some(Part::Text(addition)) })) => {
                if let Some(text) = &mut self.text {
                    text.push_str(addition);
                }
            }
            Some(Event::Finished(finished)) => {
                if let (Some(text), Some(message)) = (&self.text, &finished.message) {
                    let missing = message.content.strip_prefix(text.as_str());
                    let data_loss = || Error::local(Code::DataLoss, CONTRADICTION);
                    self.missing_text = missing.ok_or_else(data_loss)?.to_owned();
                }
                self.finished = Some(finished.clone());
            }
            _ => {} // Reasoning, part of a tool call, or an event of a later version.
        }
        Ok(event)
    }

    /// Prepares another attempt, or returns the error that ends the completion.
    fn handle_failure(&mut self, error: Error) -> Result<Option<CompletionEvent>, Error> {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::timed_out());
        }
        let kind = self.kind_of(&error);
        let (pause, since) = self.tries.after(kind, &error)?;
        let remaining = self.reconnect.saturating_sub(since);
        if remaining.is_zero() {
            return Err(error);
        }
        if let (Failure::Left | Failure::Forgotten, Some(request)) = (kind, &self.request) {
            // None of the events was delivered, so the same request can be made again.
            self.tries.restarts += u32::from(self.target.after_sequence > 0);
            self.target = identify(request);
            self.started = None;
            self.text = Some(String::new());
        }
        self.open_stream(Some(pause.min(remaining)));
        Ok(None)
    }

    fn kind_of(&self, error: &Error) -> Failure {
        let delivered = self.target.after_sequence > 1 && !self.collects; // The first is Started.
        let can_restart =
            self.request.is_some() && !delivered && self.tries.restarts < MAX_RESTARTS;
        if error.reason.is_empty() && CONNECTION_ERRORS.contains(&error.code) {
            return Failure::Lost;
        }
        if is_left(error) && self.tries.connections.are_several && can_restart {
            return Failure::Left;
        }
        match (self.resumed, error.kind()) {
            (true, Some(ErrorReason::CompletionNotFound)) if can_restart => Failure::Forgotten,
            (true, Some(ErrorReason::CompletionNotFound)) => Failure::Missing,
            _ => Failure::Final,
        }
    }
}

/// Returns the request that identifies a completion before its id is known.
pub(crate) fn identify(request: &CompleteRequest) -> ResumeCompletionRequest {
    ResumeCompletionRequest {
        session_id: request.session_id.clone(),
        request_id: request.request_id.clone(),
        ..Default::default()
    }
}

fn event_stream<R: Send + 'static>(
    pause: Option<Duration>,
    call: impl Future<Output = Result<Response<Streaming<R>>, Status>> + Send + 'static,
    event: fn(R) -> Option<CompletionEvent>,
) -> Events {
    let responses = once(async move {
        if let Some(pause) = pause {
            sleep(pause).await;
        }
        call.await.map(Response::into_inner)
    });
    responses.try_flatten().map_ok(move |it| event(it).unwrap_or_default()).err_into().boxed()
}

impl Stream for Completion {
    type Item = Result<String, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Some(event) = ready!(self.poll_event(context)?) {
            let text = match event.event {
                Some(Event::Delta(Delta { part: Some(Part::Text(text)) })) => text,
                // After a restart of the daemon, the deltas of the missing text are lost.
                Some(Event::Finished(_)) => std::mem::take(&mut self.missing_text),
                _ => continue,
            };
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(text)));
            }
        }
        Poll::Ready(None)
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Completion")
            .field("completion_id", &self.target.completion_id)
            .field("last_sequence", &self.last_sequence())
            .field("is_finished", &self.finished.is_some())
            .finish_non_exhaustive()
    }
}

/// Cancels the completion, which the daemon would otherwise keep running for its grace.
impl Drop for Completion {
    fn drop(&mut self) {
        let request = self.request.as_ref();
        let continues = request.is_some_and(|it| it.on_disconnect() == OnDisconnect::Continue);
        let Some(runtime) = self.runtime.take().filter(|_| self.running) else { return };
        if self.finished.is_some() || continues {
            return;
        }
        let ResumeCompletionRequest { completion_id, session_id, request_id, .. } =
            std::mem::take(&mut self.target);
        let cancel =
            CancelCompletionRequest { completion_id, session_id, request_id, keep_partial: false };
        let request = build_request(cancel, &self.trace, &self.session, None);
        let mut stub = self.tries.connections.stub(self.tries.at);
        runtime.spawn(async move {
            // Without an answer the daemon ends the completion after its grace.
            let _ = timeout(CANCEL_TIMEOUT, stub.cancel_completion(request)).await;
        });
    }
}
