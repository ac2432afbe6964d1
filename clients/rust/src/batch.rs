//! The calls of one batch, which are made one after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, pin::Pin, time::Duration};

use futures_util::stream::{BoxStream, Stream, StreamExt, unfold};
use prost::Message as _;
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataMap;
use tonic::{Code, Streaming};

use crate::calls::fails_over;
use crate::connections::Connections;
use crate::error::{Error, REQUEST_TOO_LARGE, is_left};
use crate::parts::MessageParts;
use crate::requests::{build_request, trace};
use crate::v1::batch_complete_response::Event;
use crate::v1::batch_result::Outcome;
use crate::v1::{
    BatchCompleteRequest, BatchCompleteResponse, BatchResult, BatchSummary, CompleteRequest,
    ErrorReason,
};

const MAX_CALL_BYTES: usize = 3 << 20; // Below the daemon's default max_request_bytes of 4 MiB.
const MAX_CALL_ITEMS: usize = 10_000;
const ITEM_BYTES: usize = 8; // The most that an item adds to a call beside its own size.
const RECONNECT: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A running batch, which is a stream of its results, then of its summary. It is made by
/// [`Client::batch`](crate::Client::batch).
///
/// The first call is made at the first poll. Dropping it early cancels the unfinished items.
#[must_use = "the calls are made when it is polled"]
pub struct Batch(BoxStream<'static, Result<Event, Error>>);

impl Batch {
    pub(crate) fn new(connections: Arc<Connections>, request: BatchCompleteRequest) -> Self {
        let calls = BatchCalls::new(connections, request);
        Self(unfold(calls, async |mut calls| calls.next().await.map(|it| (it, calls))).boxed())
    }
}

impl Stream for Batch {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Batch").finish_non_exhaustive()
    }
}

struct BatchCalls {
    connections: Arc<Connections>,
    trace: MetadataMap,
    items: Vec<CompleteRequest>,
    max_concurrency: i32,
    /// The numbers of the items of each call that is to be made.
    pending: VecDeque<Vec<usize>>,
    call: Option<Call>,
    summary: BatchSummary,
    started: Option<Instant>,
    latency: Duration,
    has_ended: bool,
    /// Whether any daemon has answered.
    is_answered: bool,
    /// None while results come.
    broken: Option<Instant>,
    /// The number of calls since then.
    failed: u32,
}

/// A running call.
struct Call {
    at: usize,
    numbers: Vec<usize>,
    /// Those of the numbers that have no result.
    unfinished: Vec<usize>,
    responses: Option<Streaming<BatchCompleteResponse>>,
    parts: MessageParts,
}

impl BatchCalls {
    fn new(connections: Arc<Connections>, request: BatchCompleteRequest) -> Self {
        Self {
            connections,
            trace: trace(),
            pending: split(&request.items),
            items: request.items,
            max_concurrency: request.max_concurrency,
            call: None,
            summary: BatchSummary::default(),
            started: None,
            latency: Duration::ZERO,
            has_ended: false,
            is_answered: false,
            broken: None,
            failed: 0,
        }
    }

    /// Returns the next result, then the summary, then None. An error ends the batch.
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        if self.has_ended {
            return None;
        }
        self.started.get_or_insert_with(Instant::now);
        loop {
            let Some(call) = &mut self.call else {
                let Some(numbers) = self.pending.pop_front() else {
                    self.has_ended = true;
                    return Some(Ok(Event::Summary(self.total())));
                };
                self.call = Some(Call {
                    at: self.connections.now(),
                    unfinished: numbers.clone(),
                    numbers,
                    responses: None,
                    parts: MessageParts::default(),
                });
                continue;
            };
            let ended = match call.responses.as_mut() {
                None => self.start().await,
                Some(responses) => match responses.message().await {
                    Ok(Some(response)) => match self.handle(response.event) {
                        Ok(None) => continue,
                        Ok(Some(result)) => return Some(Ok(Event::Result(result))),
                        Err(error) => Err(error),
                    },
                    Ok(None) => Err(shut_down()),
                    Err(status) => Err(status.into()),
                },
            };
            let Err(error) = ended else { continue };
            match self.end_call(error).await {
                Ok(None) => {}
                Ok(Some(result)) => return Some(Ok(Event::Result(result))),
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    async fn start(&mut self) -> Result<(), Error> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let items = call.numbers.iter().map(|number| self.items[*number].clone()).collect();
        let request = BatchCompleteRequest { items, max_concurrency: self.max_concurrency };
        let request = build_request(request, &self.trace, "", None);
        let response = self.connections.stub(call.at).batch_complete(request).await?;
        call.responses = Some(response.into_inner());
        Ok(())
    }

    /// Returns the result in a response, if it has one.
    fn handle(&mut self, event: Option<Event>) -> Result<Option<BatchResult>, Error> {
        self.is_answered = true;
        let Some(call) = &mut self.call else { return Ok(None) };
        let Some(Event::Result(mut result)) = call.parts.join_batch(event)? else {
            return Ok(None); // The totals are counted here.
        };
        if let Some(Outcome::Error(status)) = &result.outcome {
            let error = Error::from(status.clone());
            let is_repeated = error.kind() == Some(ErrorReason::ShuttingDown)
                || self.connections.are_several && is_left(&error);
            if is_repeated {
                return Ok(None); // Its daemon has given it up.
            }
        }
        let number = usize::try_from(result.index).ok().and_then(|index| call.numbers.get(index));
        let Some(&number) = number else { return Ok(None) };
        call.unfinished.retain(|unfinished| *unfinished != number);
        result.index = i32::try_from(number).unwrap_or(i32::MAX);
        self.broken = None;
        self.failed = 0;
        self.count(&result);
        Ok(Some(result))
    }

    /// Prepares the calls for the items without a result, or returns the error that ends the batch.
    /// An item that the daemon rejects alone has that error as its result.
    async fn end_call(&mut self, error: Error) -> Result<Option<BatchResult>, Error> {
        let Some(Call { at, mut unfinished, .. }) = self.call.take() else { return Err(error) };
        if unfinished.is_empty() {
            return Ok(None);
        }
        let is_lost = self.connections.are_several && fails_over(&error, false)
            || error.code == Code::Unavailable && self.is_answered;
        if is_lost {
            if self.broken.get_or_insert_with(Instant::now).elapsed() >= RECONNECT {
                return Err(error);
            }
            self.pending.push_front(unfinished);
            self.failed += 1;
            if self.connections.are_several {
                self.connections.leave(at, !error.reason.is_empty());
            }
            let is_round = (self.failed as usize).is_multiple_of(self.connections.round_length());
            if is_round && !self.is_answered {
                return Err(error); // There is no daemon.
            }
            if is_round {
                sleep(LONGEST_PAUSE.min(FIRST_PAUSE * (1 << self.failed.min(10)))).await;
            }
            return Ok(None);
        }
        if !is_about_items(&error) {
            return Err(error);
        }
        if unfinished.len() > 1 {
            // Until the item that the daemon rejects is alone.
            let second = unfinished.split_off(unfinished.len() / 2);
            self.pending.push_front(second);
            self.pending.push_front(unfinished);
            return Ok(None);
        }
        let index = i32::try_from(unfinished[0]).unwrap_or(i32::MAX);
        let result = BatchResult { index, outcome: Some(Outcome::Error(error.to_status())) };
        self.count(&result);
        Ok(Some(result))
    }

    fn count(&mut self, result: &BatchResult) {
        let Some(Outcome::Completion(completion)) = &result.outcome else {
            self.summary.failed += 1;
            return;
        };
        self.summary.succeeded += 1;
        let Some(finished) = &completion.finished else { return };
        let total = finished.timings.as_ref().and_then(|timings| timings.total);
        self.latency += total.and_then(|it| Duration::try_from(it).ok()).unwrap_or_default();
        if let Some(more) = &finished.usage {
            let usage = self.summary.usage.get_or_insert_default();
            usage.prompt_tokens += more.prompt_tokens;
            usage.completion_tokens += more.completion_tokens;
            if let Some(cached) = more.cached_tokens {
                *usage.cached_tokens.get_or_insert_default() += cached;
            }
        }
    }

    fn total(&mut self) -> BatchSummary {
        let wall_time = self.started.map(|started| started.elapsed()).unwrap_or_default();
        BatchSummary {
            wall_time: prost_types::Duration::try_from(wall_time).ok(),
            total_latency: prost_types::Duration::try_from(self.latency).ok(),
            ..std::mem::take(&mut self.summary)
        }
    }
}

/// Returns the numbers of the items of each call.
fn split(items: &[CompleteRequest]) -> VecDeque<Vec<usize>> {
    let mut calls: VecDeque<Vec<usize>> = VecDeque::new();
    let mut size = 0;
    for (number, item) in items.iter().enumerate() {
        let bytes = item.encoded_len() + ITEM_BYTES;
        match calls.back_mut() {
            Some(last) if size + bytes <= MAX_CALL_BYTES && last.len() < MAX_CALL_ITEMS => {
                last.push(number);
                size += bytes;
            }
            _ => {
                calls.push_back(vec![number]);
                size = bytes;
            }
        }
    }
    calls
}

/// Whether a call was rejected for one of its items, or for its size.
fn is_about_items(error: &Error) -> bool {
    let is_about_call = error.violations.iter().any(|it| it.field == "max_concurrency");
    error.kind() == Some(ErrorReason::InvalidRequest) && !is_about_call
        || error.reason == REQUEST_TOO_LARGE
}

fn shut_down() -> Error {
    Error::local(Code::Unavailable, "the daemon shut down before every item had a result")
}
