//! Many requests in one call, as the stream of their outcomes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt, once};
use tonic::{Response, Status};

use crate::v1::batch_complete_response::Event;
use crate::v1::batch_result::Outcome;
use crate::v1::{BatchCompleteRequest, BatchCompleteResponse, BatchSummary, Completion};
use crate::{Client, Error, tracing};

/// What came of one item of a batch.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BatchOutcome {
    /// Which item, from 0 on.
    pub index: usize,
    /// Its answer, or what its own call would have failed with.
    pub result: Result<Completion, Error>,
}

/// Many requests in one call: a stream of outcomes, in the order in which the items end.
///
/// The call is made when it is polled first. An error is of the call as a whole; the outcomes before
/// it hold, and repeating the call with the same request ids runs only the others. Drop it early to
/// cancel what has no outcome yet.
#[must_use = "nothing is asked until it is polled"]
pub struct Batch {
    responses: BoxStream<'static, Result<BatchCompleteResponse, Status>>,
    summary: Option<BatchSummary>,
}

impl Batch {
    pub(crate) fn new(client: Client, request: BatchCompleteRequest) -> Self {
        let request = Client::request(request, &tracing::headers(), None);
        let mut stub = client.stub;
        let call = async move { stub.batch_complete(request).await };
        Self {
            responses: once(call).map_ok(Response::into_inner).try_flatten().boxed(),
            summary: None,
        }
    }

    /// What came of all items; set once every outcome has been read.
    pub fn summary(&self) -> Option<&BatchSummary> {
        self.summary.as_ref()
    }
}

impl Stream for Batch {
    type Item = Result<BatchOutcome, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let response = match ready!(self.responses.poll_next_unpin(context)) {
                Some(Ok(response)) => response,
                Some(Err(status)) => return Poll::Ready(Some(Err(status.into()))),
                None => return Poll::Ready(None),
            };
            match response.event {
                Some(Event::Summary(summary)) => self.summary = Some(summary),
                Some(Event::Result(item)) => {
                    let result = match item.outcome {
                        Some(Outcome::Completion(completion)) => Ok(completion),
                        Some(Outcome::Error(status)) => Err(status.into()),
                        None => continue, // An outcome of a later version.
                    };
                    let index = item.index.try_into().unwrap_or_default();
                    return Poll::Ready(Some(Ok(BatchOutcome { index, result })));
                }
                None => {}
            }
        }
    }
}
