//! What the conformance program does not show: tries, addresses, foreign errors, the trace.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, time::Duration};

use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{Client, Error};

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

/// The reason, the wrong fields and the delay are read out of the details.
#[test]
fn details_are_read() {
    let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", "ruvd", HashMap::new());
    details.add_bad_request_violation("session_id", "too long");
    details.set_retry_info(Some(Duration::from_millis(1500)));
    let error: Error = Status::with_error_details(Code::InvalidArgument, "no", details).into();
    assert_eq!(error.code, Code::InvalidArgument);
    assert_eq!(error.violations[0].field, "session_id");
    assert_eq!(error.retry_after, Some(Duration::from_millis(1500)));
    assert_eq!(error.to_string(), "INVALID_REQUEST: no");
}

/// Somebody else's reason is not one of ruvd's, and what is no status at all is passed over.
#[test]
fn foreign_details_are_no_reason() {
    let details = ErrorDetails::with_error_info("INVALID_REQUEST", "example.com", HashMap::new());
    let foreign = Status::with_error_details(Code::Internal, "no", details);
    let garbage = Status::with_details(Code::Internal, "no", b"\xff\xff"[..].to_vec().into());
    assert_eq!(Error::from(foreign).reason, "");
    assert_eq!(Error::from(garbage).reason, "");
}

#[cfg(feature = "opentelemetry")]
mod trace {
    use opentelemetry::propagation::text_map_propagator::FieldIter;
    use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId};
    use opentelemetry::{Context, global};

    /// W3C's header, as the SDK's propagator writes it; the SDK is no dependency for that alone.
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

    /// The headers of a call name the span that is current.
    #[test]
    fn the_current_span_goes_out() {
        global::set_text_map_propagator(TraceParent);
        let span = SpanContext::new(
            TraceId::from(0x2a),
            SpanId::from(7),
            TraceFlags::SAMPLED,
            true,
            Default::default(),
        );
        let _current = Context::new().with_remote_span_context(span).attach();
        assert_eq!(
            crate::client::trace().get("traceparent").unwrap(),
            "00-0000000000000000000000000000002a-0000000000000007-01"
        );
    }
}
