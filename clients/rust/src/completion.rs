//! One answer over as many streams as it takes, by the rules of clients/CONFORMANCE.md.

use std::task::{Context, Poll, ready};
use std::{future::Future, pin::Pin, time::Duration};

use futures_util::stream::{BoxStream, Stream, StreamExt, TryStreamExt, once, poll_fn};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Code, Response, Status, Streaming, metadata::MetadataMap};

use crate::client::{outgoing, trace};
use crate::v1::completion_event::Event;
use crate::v1::delta::Part;
use crate::v1::*;
use crate::{Client, Error};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const BROKEN: [Code; 4] = [Code::Unavailable, Code::Internal, Code::Unknown, Code::Cancelled];

type Events = BoxStream<'static, Result<CompletionEvent, Error>>;

/// An answer on its way: a stream of its text.
///
/// The call is made when it is polled first. A stream that breaks without an error of ruvd's is
/// taken up where it was, within 10 s: by `ResumeCompletion`, or before the first event by the same
/// request again, which generates nothing twice. The text is the whole answer, each part once, or
/// the stream ends with the error.
///
/// Drop it early and the daemon stops generating and leaves the session as it was before the turn;
/// nothing waits for that. `Client::cancel` does, and can keep what there is.
#[must_use = "nothing is asked until it is polled"]
pub struct Completion {
    client: Client,
    trace: MetadataMap,
    deadline: Option<Instant>,
    /// None for a completion that somebody else began.
    request: Option<CompleteRequest>,
    /// What the daemon knows it by, and the last event that came.
    name: ResumeCompletionRequest,
    /// None after the end.
    events: Option<Events>,
    /// Whether these are of ResumeCompletion.
    resumed: bool,
    /// Whether there is something to cancel.
    running: bool,
    /// What was delivered of the text; None if it is not known from the beginning on.
    text: Option<String>,
    /// What the whole answer has beyond it.
    rest: String,
    broken: Option<Instant>,
    finished: Option<Finished>,
}

impl Completion {
    pub(crate) fn new(
        client: Client,
        request: Option<CompleteRequest>,
        name: ResumeCompletionRequest,
    ) -> Self {
        let mut completion = Self {
            client,
            trace: trace(),
            deadline: None,
            request,
            text: (name.after_sequence == 0).then(String::new),
            name,
            events: None,
            resumed: false,
            running: false,
            rest: String::new(),
            broken: None,
            finished: None,
        };
        completion.open(None);
        completion
    }

    /// With a deadline for the whole answer, from now on.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Some(Instant::now() + timeout);
        if self.events.is_some() {
            self.open(None);
        }
        self
    }

    /// The numbered events that have not been read yet, instead of their text.
    pub fn events(&mut self) -> impl Stream<Item = Result<CompletionEvent, Error>> + Unpin {
        poll_fn(|context| self.poll_event(context))
    }

    /// Wait for the whole text, with what was read before.
    ///
    /// # Errors
    ///
    /// What the completion failed with; UNKNOWN if that was read before.
    pub async fn text(&mut self) -> Result<String, Error> {
        while self.events().try_next().await?.is_some() {}
        let message = self.finished.as_ref().and_then(|end| end.message.as_ref());
        let text = message.map(|message| message.content.clone());
        text.ok_or_else(|| Error::local(Code::Unknown, "there is no answer"))
    }

    /// The whole answer, with usage and timings; set once it has been read to its end.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// The number of the last event that was read; 0 before the first.
    pub fn last_sequence(&self) -> i64 {
        self.name.after_sequence
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<CompletionEvent, Error>>> {
        while let Some(events) = &mut self.events {
            self.running = true;
            let outcome = match ready!(events.poll_next_unpin(context)) {
                // That was the end of the call, which so is not cancelled.
                _ if self.finished.is_some() => break,
                Some(Ok(event)) => self.took(event).map(Some),
                Some(Err(error)) => self.broke(error),
                None => self.broke(Error::local(Code::Unavailable, "the stream ended early")),
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

    /// Sets the events to those of a new call, which is made when they are polled, after the pause.
    fn open(&mut self, pause: Option<Duration>) {
        let mut stub = self.client.stub.clone();
        let begin = self.request.clone().filter(|_| self.name.completion_id.is_empty());
        self.resumed = begin.is_none();
        let events = if let Some(request) = begin {
            let request = outgoing(request, &self.trace, self.deadline);
            let call = async move { stub.complete(request).await };
            events_of(pause, call, |response| response.event)
        } else {
            let request = outgoing(self.name.clone(), &self.trace, self.deadline);
            let call = async move { stub.resume_completion(request).await };
            events_of(pause, call, |response| response.event)
        };
        self.events = Some(match self.deadline {
            Some(deadline) => events.take_until(async move { sleep_until(deadline).await }).boxed(),
            None => events,
        });
    }

    fn took(&mut self, event: CompletionEvent) -> Result<CompletionEvent, Error> {
        let after_sequence = event.sequence;
        self.name.after_sequence = after_sequence;
        self.broken = None;
        match &event.event {
            Some(Event::Started(Started { completion_id, .. })) => {
                let completion_id = completion_id.clone();
                self.name =
                    ResumeCompletionRequest { completion_id, after_sequence, ..Default::default() };
            }
            Some(Event::Delta(Delta { part: Some(Part::Text(more)) })) => {
                if let Some(text) = &mut self.text {
                    text.push_str(more);
                }
            }
            Some(Event::Finished(finished)) => {
                if let (Some(text), Some(whole)) = (&self.text, &finished.message) {
                    let rest = whole.content.strip_prefix(text.as_str());
                    let lost = || Error::local(Code::DataLoss, "the answer is not what came of it");
                    self.rest = rest.ok_or_else(lost)?.to_owned();
                }
                self.finished = Some(finished.clone());
            }
            _ => {} // Reasoning, a part of a tool call, or an event of a later version.
        }
        Ok(event)
    }

    /// Prepares another try, or says what ends the completion.
    fn broke(&mut self, error: Error) -> Result<Option<CompletionEvent>, Error> {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::late());
        }
        let forgotten = self.resumed && error.reason == "COMPLETION_NOT_FOUND";
        let delivered = self.name.after_sequence > 1; // The first is Started.
        if let (true, false, Some(request)) = (forgotten, delivered, &self.request) {
            // The daemon was restarted. Nothing was delivered, so that another answer is as good.
            self.name = name_of(request);
        } else if !error.reason.is_empty() || !BROKEN.contains(&error.code) {
            return Err(error);
        }
        let since = now - *self.broken.get_or_insert(now);
        let left = self.client.reconnect.saturating_sub(since);
        if left.is_zero() {
            return Err(error);
        }
        // What it has been broken for and 0.05 s: doubled each time, as tries fail at once.
        self.open(Some((since + FIRST_PAUSE).min(LONGEST_PAUSE).min(left)));
        Ok(None)
    }
}

/// What the daemon knows a completion by before it has an id.
pub(crate) fn name_of(request: &CompleteRequest) -> ResumeCompletionRequest {
    ResumeCompletionRequest {
        session_id: request.session_id.clone(),
        request_id: request.request_id.clone(),
        ..Default::default()
    }
}

fn events_of<R: Send + 'static>(
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
                // After a restart of the daemon the events that brought the rest are gone.
                Some(Event::Finished(_)) => std::mem::take(&mut self.rest),
                _ => continue,
            };
            if !text.is_empty() {
                return Poll::Ready(Some(Ok(text)));
            }
        }
        Poll::Ready(None)
    }
}

/// The daemon keeps a completion for the grace when its stream goes, so it is told.
impl Drop for Completion {
    fn drop(&mut self) {
        let request = self.request.as_ref();
        let continues = request.is_some_and(|it| it.on_disconnect() == OnDisconnect::Continue);
        if !self.running || self.finished.is_some() || continues {
            return;
        }
        let ResumeCompletionRequest { completion_id, session_id, request_id, .. } =
            std::mem::take(&mut self.name);
        let cancel =
            CancelCompletionRequest { completion_id, session_id, request_id, keep_partial: false };
        let request = outgoing(cancel, &self.trace, None);
        let mut stub = self.client.stub.clone();
        self.client.runtime.spawn(async move { stub.cancel_completion(request).await });
    }
}
