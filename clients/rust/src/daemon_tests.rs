//! Tests of a client's calls against a scripted daemon.
#![allow(clippy::wildcard_imports)] // The generated messages.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, iter};
use prost::Message as _;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::scripted_daemon::{Call, Responses, ScriptedDaemon};
use crate::v1::completion_event::Event;
use crate::v1::delta::Part;
use crate::v1::*;
use crate::{Batch, Client, ClientBuilder, Completion, Error};

const BOUND: Duration = Duration::from_secs(60);
const PIECE: usize = 16 << 10;

fn one(response: &impl prost::Message) -> Responses {
    iter([Ok(response.encode_to_vec())]).boxed()
}

fn failure(status: Status) -> Responses {
    iter([Err(status)]).boxed()
}

fn event(sequence: i64, event: Event) -> Vec<u8> {
    let event = Some(CompletionEvent { sequence, event: Some(event) });
    CompleteResponse { event }.encode_to_vec()
}

/// Returns the events of an answer without an end.
fn endless(text: &str) -> Responses {
    let text = text.to_owned();
    let started =
        event(1, Event::Started(Started { completion_id: "c".into(), ..Default::default() }));
    let deltas = (2..).map(move |sequence| {
        event(sequence, Event::Delta(Delta { part: Some(Part::Text(text.clone())) }))
    });
    iter([started]).chain(iter(deltas)).map(Ok).boxed()
}

/// Waits for a state that does come, also on a busy machine or while tokio's clock is paused.
async fn wait_until(state: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !state() {
        assert!(start.elapsed() < BOUND, "the state within a minute");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Dropping an answer and its client ends the completion, the connection and all their tasks.
#[tokio::test]
async fn a_dropped_client_leaves_no_task() {
    let cancelled = Arc::new(Mutex::new(Vec::new()));
    let recorded = cancelled.clone();
    let daemon = ScriptedDaemon::start(move |call: Call| match call.method.as_str() {
        "Complete" => endless("text "),
        "CancelCompletion" => {
            recorded.lock().unwrap().push(call.request::<CancelCompletionRequest>().completion_id);
            one(&CancelCompletionResponse {})
        }
        _ => one(&ListModelsResponse::default()),
    });
    let client = daemon.client();
    client.models().await.unwrap();
    let mut answer = client.complete("hello");
    assert_eq!(answer.next().await.unwrap().unwrap(), "text ");
    assert!(Handle::current().metrics().num_alive_tasks() > 0);
    drop(answer);
    drop(client);
    wait_until(|| Handle::current().metrics().num_alive_tasks() == 0).await;
    assert_eq!(*cancelled.lock().unwrap(), ["c"]);
}

/// A daemon that does not answer a cancellation is not waited for without an end.
#[tokio::test]
async fn a_cancellation_without_an_answer_is_given_up() {
    let daemon = ScriptedDaemon::start(|call: Call| match call.method.as_str() {
        "Complete" => endless("text "),
        _ => stream::pending().boxed(),
    });
    let client = daemon.client();
    let mut answer = client.complete("hello");
    answer.next().await.unwrap().unwrap();
    drop((answer, client));
    tokio::time::pause(); // From now on it jumps to the next timer.
    wait_until(|| Handle::current().metrics().num_alive_tasks() == 0).await;
}

/// The daemon is held up by a reader that reads nothing, after what the connection's windows hold.
#[tokio::test]
async fn a_slow_reader_holds_the_daemon_up() {
    const COUNT: usize = 4096;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let daemon = ScriptedDaemon::start(move |_| {
        let counter = counter.clone();
        let events = endless(&"x".repeat(PIECE)).take(COUNT);
        let count = move |_: &_| {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        events.inspect(count).boxed()
    });
    let mut answer = daemon.client().complete("hello");
    answer.next().await.unwrap().unwrap();
    sleep(Duration::from_secs(1)).await; // The time in which a client could take it all.
    assert!(sent.load(Ordering::SeqCst) < COUNT / 4);
}

#[tokio::test]
async fn the_server_info_is_what_the_daemon_tells() {
    let info = GetServerInfoResponse {
        version: "0.3.0".into(),
        features: vec!["fork".into()],
        limits: Some(ServerLimits { max_sessions: 100, ..Default::default() }),
        engines: vec![EngineInfo { name: "echo".into(), ready: true, ..Default::default() }],
        ..Default::default()
    };
    let told = info.clone();
    let daemon = ScriptedDaemon::start(move |call| match call.method.as_str() {
        "GetServerInfo" => one(&told),
        _ => failure(Status::unimplemented("unknown")),
    });
    assert_eq!(daemon.client().server_info().await.unwrap(), info);
}

/// A daemon from before `GetServerInfo` is told by the code.
#[tokio::test]
async fn an_older_daemon_has_no_server_info() {
    let daemon = ScriptedDaemon::start(|_| failure(Status::unimplemented("unknown")));
    let error = daemon.client().server_info().await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unimplemented, ""));
}

/// The caller's metadata is sent with every call, in place of the client's own.
#[tokio::test]
async fn own_metadata_is_sent_with_every_call() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorded = seen.clone();
    let daemon = ScriptedDaemon::start(move |call: Call| {
        let value = |key| {
            let values: Vec<_> = call.metadata.get_all(key).iter().collect();
            values.iter().map(|it| it.to_str().unwrap()).collect::<Vec<_>>().join(",")
        };
        let line = format!("{} {} {}", call.method, value("x-team"), value("x-ruvd-session-id"));
        recorded.lock().unwrap().push(line);
        failure(Status::not_found("no"))
    });
    let mut metadata = MetadataMap::new();
    metadata.insert("x-team", "blue".parse().unwrap());
    let client = Client::builder().address(&daemon.address).metadata(metadata.clone());
    let client = client.build().unwrap();
    client.end("ada").await.unwrap_err();
    client.complete("hello").text().await.unwrap_err();
    metadata.insert("x-ruvd-session-id", "mine".parse().unwrap());
    let client = Client::builder().address(&daemon.address).metadata(metadata).build().unwrap();
    client.end("ada").await.unwrap_err();
    let expected = ["EndSession blue ada", "Complete blue ", "EndSession blue mine"];
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// Values of an enum that only a later daemon knows are kept as numbers.
#[tokio::test]
async fn values_of_a_later_daemon_are_kept() {
    let daemon = ScriptedDaemon::start(|_| {
        let finished = Finished { finish_reason: 99, ..Default::default() };
        iter([Ok(event(1, Event::Finished(finished)))]).boxed()
    });
    let mut answer = daemon.client().complete("hello");
    while answer.next().await.is_some() {}
    assert_eq!(answer.finished().unwrap().finish_reason, 99);
    assert_eq!(answer.finished().unwrap().finish_reason(), FinishReason::Unspecified);
}

/// Everything may be used from several threads and tasks; answers are moved between them.
#[test]
fn all_types_can_be_sent_to_other_threads() {
    fn shared<T: Send + Sync + Clone + std::fmt::Debug + 'static>() {}
    fn sent<T: Send + Unpin + std::fmt::Debug + 'static>() {}
    shared::<Client>();
    shared::<ClientBuilder>();
    shared::<Error>();
    sent::<Completion>();
    sent::<Batch>();
}

/// The future of every method can be given to `tokio::spawn`.
#[test]
fn all_futures_can_be_spawned() {
    fn spawnable(future: impl Future + Send) {
        drop(future);
    }
    let client = Client::new("127.0.0.1:1").unwrap();
    spawnable(client.create(CreateSessionRequest::default()));
    spawnable(client.get("ada", SessionView::Full));
    spawnable(client.list(ListSessionsRequest::default()));
    spawnable(client.update(UpdateSessionRequest::default()));
    spawnable(client.append(AppendMessagesRequest::default()));
    spawnable(client.fork(ForkSessionRequest::default()));
    spawnable(client.compact(CompactSessionRequest::default()));
    spawnable(client.end("ada"));
    spawnable(client.end_if_exists("ada"));
    spawnable(client.models());
    spawnable(client.server_info());
    spawnable(client.metrics());
    spawnable(client.health());
    spawnable(client.cancel(CancelCompletionRequest::default()));
    spawnable(client.complete("hello").text());
    spawnable(client.batch(BatchCompleteRequest::default()).next());
}
