//! One completion over as many streams as it takes: a stream that breaks is not its end.
//!
//! It is polled by [`crate::Completion`] and owns nothing that runs by itself, so that dropping it
//! is all that a caller has to do to cancel.

use std::{future::Future, time::Duration};

use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use tokio::{runtime::Handle, time};
use tonic::{Code, Status, metadata::MetadataMap};

use crate::v1::completion_event::Event;
use crate::v1::delta::Part;
use crate::v1::{CancelCompletionRequest, CompleteRequest, CompletionEvent, Delta};
use crate::v1::{Finished, OnDisconnect, ResumeCompletionRequest};
use crate::{Client, Error, tracing};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

type Events = BoxStream<'static, Result<Option<CompletionEvent>, Status>>;

/// The future's outcome, or DEADLINE_EXCEEDED where its time is over first.
pub(crate) async fn within<T, E: Into<Error>>(
    deadline: Option<time::Instant>,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    let outcome = match deadline {
        Some(deadline) => time::timeout_at(deadline, future).await,
        None => Ok(future.await),
    };
    outcome.map_or_else(|_| Err(Error::late()), |made| made.map_err(Into::into))
}

pub(crate) struct Call {
    client: Client,
    /// None for a completion that somebody else began.
    request: Option<CompleteRequest>,
    /// None until the completion is known.
    resume: Option<ResumeCompletionRequest>,
    trace: MetadataMap,
    pub(crate) deadline: Option<time::Instant>,
    stream: Option<Events>,
    /// Whether the stream is one of ResumeCompletion.
    resumed: bool,
    sequence: i64,
    /// What was delivered of the text; None if it is not known from the beginning on.
    text: Option<String>,
    /// Whether text, reasoning or a tool call was.
    delivered: bool,
    /// What comes after an event that the daemon did not send.
    next: Option<CompletionEvent>,
    broken: Option<time::Instant>,
    pause: Duration,
    /// Set while the daemon has work to stop when this is dropped.
    runtime: Option<Handle>,
    ended: bool,
}

impl Call {
    pub(crate) fn complete(client: Client, request: CompleteRequest) -> Self {
        Self::new(client, Some(request.resumable()), None)
    }

    pub(crate) fn resume(client: Client, request: ResumeCompletionRequest) -> Self {
        Self::new(client, None, Some(request))
    }

    fn new(
        client: Client,
        request: Option<CompleteRequest>,
        resume: Option<ResumeCompletionRequest>,
    ) -> Self {
        let sequence = resume.as_ref().map_or(0, |resume| resume.after_sequence);
        Self {
            client,
            request,
            resume,
            trace: tracing::headers(),
            deadline: None,
            stream: None,
            resumed: false,
            sequence,
            text: (sequence == 0).then(String::new),
            delivered: false,
            next: None,
            broken: None,
            pause: FIRST_PAUSE,
            runtime: None,
            ended: false,
        }
    }

    /// The events until Finished or an error, which are the last.
    pub(crate) fn events(self) -> BoxStream<'static, Result<CompletionEvent, Error>> {
        futures_util::stream::unfold(self, |mut call| async move {
            let event = call.next().await?;
            Some((event, call))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<CompletionEvent, Error>> {
        if let Some(event) = self.next.take() {
            return Some(Ok(event));
        }
        if self.ended {
            // So that the call ends by itself rather than cancelled.
            if let Some(mut stream) = self.stream.take() {
                let _ = time::timeout(LONGEST_PAUSE, stream.next()).await;
            }
            return None;
        }
        let outcome = self.read().await;
        if outcome.is_err() {
            // Nothing is left to stop: what is out of time is ended by the daemon itself.
            self.ended = true;
            self.runtime = None;
        }
        Some(outcome)
    }

    async fn read(&mut self) -> Result<CompletionEvent, Error> {
        loop {
            if self.deadline.is_some_and(|deadline| deadline <= time::Instant::now()) {
                return Err(Error::late());
            }
            match within(self.deadline, self.receive()).await {
                Ok(event) if event.sequence <= self.sequence => {}
                Ok(event) => return self.took(event),
                Err(error) => {
                    let next = time::Instant::now() + self.broke(error)?;
                    time::sleep_until(self.deadline.map_or(next, |deadline| deadline.min(next)))
                        .await;
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<CompletionEvent, Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.open().await?;
                self.stream.insert(stream)
            }
        };
        match stream.next().await {
            Some(event) => Ok(event?.unwrap_or_default()),
            None => Err(Error::local(Code::Unavailable, "the stream ended before the answer")),
        }
    }

    async fn open(&mut self) -> Result<Events, Status> {
        self.runtime = Some(Handle::current());
        self.resumed = self.resume.is_some();
        let mut stub = self.client.stub.clone();
        match (&self.resume, &self.request) {
            (None, Some(request)) => {
                let request = Client::request(request.clone(), &self.trace, self.deadline);
                let stream = stub.complete(request).await?.into_inner();
                Ok(stream.map_ok(|response| response.event).boxed())
            }
            (resume, _) => {
                let resume = ResumeCompletionRequest {
                    after_sequence: self.sequence,
                    ..resume.clone().unwrap_or_default()
                };
                let request = Client::request(resume, &self.trace, self.deadline);
                let stream = stub.resume_completion(request).await?.into_inner();
                Ok(stream.map_ok(|response| response.event).boxed())
            }
        }
    }

    fn took(&mut self, event: CompletionEvent) -> Result<CompletionEvent, Error> {
        self.sequence = event.sequence;
        self.broken = None;
        self.pause = FIRST_PAUSE;
        match &event.event {
            Some(Event::Started(started)) => {
                self.resume = Some(ResumeCompletionRequest {
                    completion_id: started.completion_id.clone(),
                    ..Default::default()
                });
            }
            Some(Event::Delta(Delta { part: Some(part) })) => {
                self.delivered = true;
                if let (Some(text), Part::Text(more)) = (&mut self.text, part) {
                    text.push_str(more);
                }
            }
            Some(Event::Finished(finished)) => {
                self.ended = true;
                self.runtime = None;
                if let Some(rest) = self.rest(finished)? {
                    // The events that brought it are no longer kept. They had numbers before this.
                    let sequence = event.sequence - 1;
                    self.next = Some(event);
                    let part = Some(Part::Text(rest));
                    let event = Some(Event::Delta(Delta { part }));
                    return Ok(CompletionEvent { sequence, event });
                }
            }
            _ => {} // An event of a later version.
        }
        Ok(event)
    }

    /// What the answer has beyond the text that was delivered.
    fn rest(&self, finished: &Finished) -> Result<Option<String>, Error> {
        let (Some(text), Some(message)) = (&self.text, &finished.message) else {
            return Ok(None);
        };
        match message.content.strip_prefix(text.as_str()) {
            Some(rest) => Ok((!rest.is_empty()).then(|| rest.to_owned())),
            None => {
                Err(Error::local(Code::DataLoss, "the answer does not begin with what came of it"))
            }
        }
    }

    /// How long to wait before another try, or what ends the completion.
    fn broke(&mut self, error: Error) -> Result<Duration, Error> {
        self.stream = None;
        let forgotten = error.reason == "COMPLETION_NOT_FOUND" && self.resumed;
        if forgotten && self.request.is_some() && !self.delivered {
            // The daemon was restarted. Nothing was delivered, so that another answer is as good.
            self.resume = None;
            self.sequence = 0;
        } else if !error.reason.is_empty() {
            return Err(error);
        }
        let now = time::Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::late());
        }
        let left = self.client.reconnect.checked_sub(now - *self.broken.get_or_insert(now));
        let Some(left) = left.filter(|left| !left.is_zero()) else {
            return Err(error);
        };
        let pause = self.pause.min(left);
        self.pause = LONGEST_PAUSE.min(2 * self.pause);
        Ok(pause)
    }

    /// Stop the completion in the daemon, which keeps it for the grace when its stream goes.
    /// Whether this arrives is not waited for. One that is to continue is left alone.
    fn cancel(&mut self) {
        self.stream = None;
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        if self.request.as_ref().is_some_and(|r| r.on_disconnect() == OnDisconnect::Continue) {
            return;
        }
        let mut cancel = CancelCompletionRequest::default();
        match (&self.resume, &self.request) {
            (Some(resume), _) => {
                cancel.completion_id.clone_from(&resume.completion_id);
                cancel.session_id.clone_from(&resume.session_id);
                cancel.request_id.clone_from(&resume.request_id);
            }
            (None, Some(request)) => {
                cancel.session_id.clone_from(&request.session_id);
                cancel.request_id.clone_from(&request.request_id);
            }
            (None, None) => {}
        }
        let client = self.client.clone();
        runtime.spawn(async move { client.cancel(cancel).await });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.cancel();
    }
}
