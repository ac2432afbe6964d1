//! Tests beyond the conformance program: retries, addresses, foreign errors and tracing.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, time::Duration};

use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{Client, CompleteRequest, Error, ErrorReason};

/// A server that closes every connection at once, and a client of it that counts its attempts.
///
/// Every attempt asks for a token, while a broken connection may be made again within an attempt.
struct ClosingServer {
    client: Client,
    attempts: Arc<AtomicU32>,
}

impl ClosingServer {
    async fn start(reconnect: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let attempts = Arc::new(AtomicU32::new(0));
        let counter = attempts.clone();
        let source = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, Error>(" secret\n".into()) }
        };
        let client = Client::builder().address(address).token_source(source);
        Self { client: client.reconnect(reconnect).build().unwrap(), attempts }
    }

    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::SeqCst)
    }
}

const RECONNECT: Duration = Duration::from_millis(300);

/// A read is attempted as often as the service config says, and a lost connection is UNAVAILABLE.
#[tokio::test]
async fn reads_are_tried_four_times() {
    let server = ClosingServer::start(RECONNECT).await;
    let error = server.client.models().await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, ""));
    assert_eq!(server.attempts(), 4);
}

/// A write is not retried, because the client cannot know whether it was done.
#[tokio::test]
async fn writes_are_tried_once() {
    let server = ClosingServer::start(RECONNECT).await;
    assert_eq!(server.client.end("ada").await.unwrap_err().code, Code::Unavailable);
    assert_eq!(server.attempts(), 1);
}

/// A completion is attempted until the reconnect time is over, and ends with the last error. Every
/// attempt has a token of its own.
#[tokio::test]
async fn completions_are_tried_for_a_while() {
    let server = ClosingServer::start(RECONNECT).await;
    let start = Instant::now();
    let error = server.client.complete("hello").text().await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, ""));
    assert!(start.elapsed() >= RECONNECT);
    // At 0, 50, 150 and 300 ms. On a slow machine the last attempts may be omitted.
    assert!((2..=4).contains(&server.attempts()), "{}", server.attempts());
}

/// The error of a connection that cannot be made has the operating system's as its source.
#[tokio::test]
async fn the_cause_of_a_lost_connection_is_a_source() {
    let nobody = TcpSocket::new_v4().unwrap(); // Bound, but it does not listen.
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    let error = Client::new(&address).unwrap().end("ada").await.unwrap_err();
    let mut cause = error.source();
    while let Some(other) = cause.filter(|it| !it.is::<io::Error>()) {
        cause = other.source();
    }
    let cause = cause.and_then(|it| it.downcast_ref::<io::Error>()).map(io::Error::kind);
    assert_eq!(cause, Some(io::ErrorKind::ConnectionRefused));
}

/// An error that the daemon has sent has no source.
#[test]
fn the_daemons_error_has_no_source() {
    assert!(Error::from(Status::not_found("no")).source().is_none());
}

/// The pauses between immediate failures double, from 50 ms to 1 s.
#[test]
fn pauses_double_up_to_a_second() {
    let mut since = Duration::ZERO;
    let pauses = [(); 7].map(|()| {
        let pause = crate::tries::next_pause(since);
        since += pause;
        pause.as_millis()
    });
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
}

/// `unix:PATH` connects to the socket at that path.
#[tokio::test]
async fn unix_sockets_are_addresses() {
    let path = env::temp_dir().join(format!("ruvd-client-{}.sock", uuid::Uuid::new_v4()));
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(&format!("unix:{}", path.display())).unwrap();
    let call = tokio::spawn(async move { client.end("ada").await });
    let accepted = timeout(Duration::from_secs(60), listener.accept()).await;
    call.abort();
    fs::remove_file(&path).unwrap();
    accepted.unwrap().unwrap();
}

/// A malformed address is rejected before any call.
#[tokio::test]
async fn malformed_addresses_are_rejected() {
    assert_eq!(Client::new("not an address").unwrap_err().code, Code::InvalidArgument);
}

/// A client and a completion can be made and dropped without a runtime.
#[test]
fn only_calls_need_a_runtime() {
    let client = Client::new("127.0.0.1:1").unwrap();
    drop(client.complete("hello").timeout(Duration::from_secs(1)));
    drop(client);
}

/// A client that was made before its runtime works in it.
#[test]
fn a_client_from_before_the_runtime_makes_calls() {
    let client = Client::new("127.0.0.1:1").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(client.end("ada")).unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
}

/// Without a token the daemon is not called, and nothing is tried again.
#[tokio::test]
async fn the_error_of_a_token_source_fails_the_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let source = async || Err::<String, _>("the vault is sealed");
    let client = Client::builder().address(address).token_source(source).build().unwrap();
    for error in [
        client.complete("hello").text().await.unwrap_err(),
        client.models().await.unwrap_err(),
        client.end("ada").await.unwrap_err(),
    ] {
        assert_eq!((error.code, error.reason.as_str()), (Code::Unauthenticated, ""));
        assert!(error.message.contains("the vault is sealed"));
    }
    let connected = timeout(Duration::from_millis(10), listener.accept()).await;
    assert!(connected.is_err(), "no connection was made");
}

/// Neither settings nor clients nor errors print a token or the caller's metadata.
#[tokio::test]
async fn secrets_are_not_printed() {
    let mut metadata = crate::MetadataMap::new();
    metadata.insert("x-key", "geheim".parse().unwrap());
    let settings = Client::builder().address("127.0.0.1:1").token("geheim").metadata(metadata);
    assert!(format!("{settings:?}").contains("x-key"));
    assert!(!format!("{settings:?} {:?}", settings.clone().build().unwrap()).contains("geheim"));
    let settings = settings.token_source(async || Ok::<_, Error>("geheimer schlüssel".to_owned()));
    let error = settings.build().unwrap().end("ada").await.unwrap_err();
    assert_eq!(error.code, Code::Unauthenticated);
    assert!(!format!("{error:?} {error}").contains("geheim"));
}

/// A session that is gone is created anew only if the caller wants it.
#[test]
fn sessions_are_created_anew_on_demand() {
    let request = CompleteRequest::from("hello").in_session("ada");
    assert!(!request.recreate_if_gone);
    assert!(request.recreate_if_gone().recreate_if_gone);
}

/// An error is the outcome of a batch's item with its reason and its invalid fields.
#[test]
fn an_error_is_the_status_of_an_item() {
    let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", "ruvd", HashMap::new());
    details.add_bad_request_violation("session_id", "too long");
    let error: Error = Status::with_error_details(Code::InvalidArgument, "no", details).into();
    let again = Error::from(error.to_status());
    assert_eq!((again.code, again.message), (error.code, error.message));
    assert_eq!((again.reason, again.violations.len()), (error.reason, 1));
}

/// The reason, the invalid fields and the retry delay are read from the details.
#[test]
fn details_are_read() {
    let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", "ruvd", HashMap::new());
    details.add_bad_request_violation("session_id", "too long");
    details.set_retry_info(Some(Duration::from_millis(1500)));
    let error: Error = Status::with_error_details(Code::InvalidArgument, "no", details).into();
    assert_eq!(error.code, Code::InvalidArgument);
    assert_eq!(error.kind(), Some(ErrorReason::InvalidRequest));
    assert_eq!(error.violations[0].field, "session_id");
    assert_eq!(error.retry_after, Some(Duration::from_millis(1500)));
    assert_eq!(error.to_string(), "INVALID_REQUEST: no");
}

/// A reason of another domain is not ruvd's, and malformed details are ignored.
#[test]
fn foreign_details_are_no_reason() {
    let details = ErrorDetails::with_error_info("INVALID_REQUEST", "example.com", HashMap::new());
    let foreign = Status::with_error_details(Code::Internal, "no", details);
    let garbage = Status::with_details(Code::Internal, "no", b"\xff\xff"[..].to_vec().into());
    assert_eq!(Error::from(foreign.clone()).reason, "");
    assert_eq!(Error::from(foreign).kind(), None);
    assert_eq!(Error::from(garbage).reason, "");
}

/// A reason that only a later daemon knows is kept as it is.
#[test]
fn reasons_of_a_later_daemon_are_kept() {
    let details = ErrorDetails::with_error_info("MOON_IS_FULL", "ruvd", HashMap::new());
    let error: Error = Status::with_error_details(Code::Aborted, "no", details).into();
    assert_eq!((error.kind(), error.reason.as_str()), (None, "MOON_IS_FULL"));
}

/// The reasons of the enum are those that docs/errors.md lists for the sessions' service.
#[test]
fn all_reasons_are_known() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let page = fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let is_of_sessions = |name: &&str| !name.starts_with("BACKUP_"); // These are administrators'.
    let listed: BTreeSet<_> = rows.map(|(name, _)| name).filter(is_of_sessions).collect();
    let reasons = (1..).map_while(|number| ErrorReason::try_from(number).ok());
    let known = reasons.map(|it| it.as_str_name().trim_start_matches("ERROR_REASON_"));
    assert_eq!(known.collect::<BTreeSet<_>>(), listed);
    for name in listed {
        let details = ErrorDetails::with_error_info(name, "ruvd", HashMap::new());
        let error: Error = Status::with_error_details(Code::Aborted, "no", details).into();
        assert!(error.kind().is_some(), "{name}");
    }
}

#[cfg(feature = "opentelemetry")]
mod trace {
    use opentelemetry::propagation::text_map_propagator::FieldIter;
    use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
    use opentelemetry::{Context, global};

    /// Writes the W3C header like the SDK's propagator, without a dependency on the SDK.
    #[derive(Debug)]
    struct TraceParent;

    impl TextMapPropagator for TraceParent {
        fn inject_context(&self, context: &Context, to: &mut dyn Injector) {
            let span = context.span().span_context().clone();
            let parent = format!("00-{}-{}-01", span.trace_id(), span.span_id());
            to.set("traceparent", parent);
        }

        fn extract_with_context(&self, context: &Context, _: &dyn Extractor) -> Context {
            context.clone()
        }

        fn fields(&self) -> FieldIter<'_> {
            FieldIter::new(&[])
        }
    }

    /// The headers of a call contain the current span.
    #[test]
    fn the_current_span_is_sent() {
        global::set_text_map_propagator(TraceParent);
        let span = SpanContext::new(
            TraceId::from(0x2a),
            SpanId::from(7),
            TraceFlags::SAMPLED,
            true,
            opentelemetry::trace::TraceState::default(),
        );
        let _current = Context::new().with_remote_span_context(span).attach();
        assert_eq!(
            crate::requests::trace().get("traceparent").unwrap(),
            "00-0000000000000000000000000000002a-0000000000000007-01"
        );
    }
}
