//! An answer on its way, as the stream of text that most callers want.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_util::stream::{BoxStream, StreamExt, poll_fn};
use tokio::time::Instant;

use crate::Error;
use crate::call::Call;
use crate::v1::completion_event::Event;
use crate::v1::delta::Part;
use crate::v1::{CompletionEvent, Delta, Finished, Message, Started};

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
    state: State,
    started: Option<Started>,
    finished: Option<Finished>,
    last_sequence: i64,
}

enum State {
    Asked(Box<Call>),
    Running(BoxStream<'static, Result<CompletionEvent, Error>>),
    Ended,
}

impl Completion {
    pub(crate) fn new(call: Call) -> Self {
        Self {
            state: State::Asked(Box::new(call)),
            started: None,
            finished: None,
            last_sequence: 0,
        }
    }

    /// With a deadline for the whole answer, from now on. It has no effect once the answer is read.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        if let State::Asked(call) = &mut self.state {
            call.deadline = Some(Instant::now() + timeout);
        }
        self
    }

    /// The numbered events that have not been read yet, instead of their text.
    pub fn events(&mut self) -> impl Stream<Item = Result<CompletionEvent, Error>> + Unpin {
        poll_fn(move |context| self.poll_event(context))
    }

    /// Wait for the whole answer: its text, tool calls and reasoning.
    ///
    /// # Errors
    ///
    /// What the completion failed with; UNKNOWN if that was read before.
    pub async fn message(&mut self) -> Result<Message, Error> {
        while let Some(event) = self.events().next().await {
            event?;
        }
        let message = self.finished.as_ref().and_then(|end| end.message.clone());
        message.ok_or_else(|| Error::local(tonic::Code::Unknown, "there is no answer"))
    }

    /// Wait for the whole text, with what was read before.
    ///
    /// # Errors
    ///
    /// As [`Completion::message`].
    pub async fn text(&mut self) -> Result<String, Error> {
        Ok(self.message().await?.content)
    }

    /// What is known since the turn has the engine: the completion's id among others.
    pub fn started(&self) -> Option<&Started> {
        self.started.as_ref()
    }

    /// How it ended, with usage and timings; set once the answer has been read to its end.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// The number of the last event that was read; 0 before the first.
    pub fn last_sequence(&self) -> i64 {
        self.last_sequence
    }

    fn poll_event(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<CompletionEvent, Error>>> {
        if let State::Asked(_) = self.state
            && let State::Asked(call) = std::mem::replace(&mut self.state, State::Ended)
        {
            self.state = State::Running(call.events());
        }
        let State::Running(events) = &mut self.state else {
            return Poll::Ready(None);
        };
        let event = ready!(events.poll_next_unpin(context));
        match &event {
            Some(Ok(CompletionEvent { sequence, event })) => {
                self.last_sequence = *sequence;
                match event {
                    Some(Event::Started(started)) => self.started = Some(started.clone()),
                    Some(Event::Finished(finished)) => self.finished = Some(finished.clone()),
                    _ => {}
                }
            }
            Some(Err(_)) | None => self.state = State::Ended,
        }
        Poll::Ready(event)
    }
}

impl Stream for Completion {
    type Item = Result<String, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let event = match ready!(self.poll_event(context)) {
                Some(Ok(event)) => event.event,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            if let Some(Event::Delta(Delta { part: Some(Part::Text(text)) })) = event {
                return Poll::Ready(Some(Ok(text)));
            }
        }
    }
}
