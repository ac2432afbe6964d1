//! Calls that are no streams, with the timeouts and retries of the service config.
//!
//! tonic does not support service configs. With several addresses a call is repeated at the others.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status};

use crate::connections::{Connections, Stub};
use crate::error::{Error, is_left};
use crate::requests::{build_request, trace};
use crate::v1::ErrorReason;

static POLICY_OF_READS: LazyLock<&'static Value> =
    LazyLock::new(|| &method_config("GetSession")["retryPolicy"]);
static SERVICE_CONFIG: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../service_config.json")).expect("valid JSON")
});

/// The method of a call, and the session that it is about; empty for none.
pub(crate) struct Method<'a> {
    pub(crate) name: &'static str,
    pub(crate) session: &'a str,
}

/// Makes a call until it succeeds or its error is final.
pub(crate) async fn call<Q: Clone, R: Default>(
    connections: &Connections,
    method: Method<'_>,
    message: Q,
    send: impl AsyncFn(Stub, Request<Q>) -> Result<Response<R>, Status>,
) -> Result<R, Error> {
    let config = method_config(method.name);
    let is_read = config["retryPolicy"].is_object();
    // With several addresses all methods have the policy of reads, as each can be repeated.
    let policy = if connections.are_several { *POLICY_OF_READS } else { &config["retryPolicy"] };
    let trace = trace();
    let attempt = async |at| {
        let request = build_request(message.clone(), &trace, method.session, None);
        send(connections.stub(at), request).await.map(Response::into_inner).map_err(Error::from)
    };
    let mut was_lost = false;
    let attempts = async {
        let multiplier = policy["backoffMultiplier"].as_f64().unwrap_or(1.0);
        let max_pause = seconds(&policy["maxBackoff"]).unwrap_or_default();
        let mut pause = seconds(&policy["initialBackoff"]).unwrap_or_default();
        let mut rounds = policy["maxAttempts"].as_u64().unwrap_or(1);
        loop {
            let mut last = None;
            for _ in 0..connections.round_length() {
                let at = connections.now();
                let error = match attempt(at).await {
                    Ok(response) => return Ok(response),
                    Err(error) => error,
                };
                let is_gone = error.kind() == Some(ErrorReason::SessionNotFound);
                if method.name == "EndSession" && was_lost && is_gone {
                    return Ok(R::default()); // An attempt whose answer was lost has ended it.
                }
                if method.name == "CancelCompletion" && is_missing(&error) {
                    for other in connections.others(at) {
                        match attempt(other).await {
                            Err(error) if is_missing(&error) || fails_over(&error, false) => {}
                            outcome => return outcome,
                        }
                    }
                    return Err(error);
                }
                let is_repeated = if connections.are_several {
                    fails_over(&error, is_read)
                } else {
                    contains_code(&policy["retryableStatusCodes"], error.code)
                };
                if !is_repeated {
                    return Err(error);
                }
                if connections.are_several {
                    was_lost |= error.reason.is_empty();
                    connections.leave(at, !error.reason.is_empty());
                }
                last = Some(error);
            }
            rounds -= 1;
            if let Some(error) = last.filter(|_| rounds == 0) {
                return Err(error);
            }
            sleep(pause).await;
            pause = pause.mul_f64(multiplier).min(max_pause);
        }
    };
    match seconds(&config["timeout"]) {
        Some(limit) => timeout(limit, attempts).await.unwrap_or(Err(Error::timed_out())),
        None => attempts.await,
    }
}

/// Whether a call that failed so is repeated at another address. Any UNAVAILABLE of a read is.
pub(crate) fn fails_over(error: &Error, is_read: bool) -> bool {
    is_left(error) || error.code == Code::Unavailable && (is_read || error.reason.is_empty())
}

fn is_missing(error: &Error) -> bool {
    error.kind() == Some(ErrorReason::CompletionNotFound)
}

/// Returns the service config's entry for a method of `ruvd.v1.SessionService`, or null.
fn method_config(method: &str) -> &'static Value {
    let mut configs = SERVICE_CONFIG["methodConfig"].as_array().into_iter().flatten();
    let config = configs.find(|config| {
        let mut names = config["name"].as_array().into_iter().flatten();
        names.any(|name| name["method"] == method)
    });
    config.unwrap_or(&Value::Null)
}

/// Parses a Duration in its JSON form, `"0.1s"`.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Whether the list contains the code's name, which is `UNAVAILABLE` there and `Unavailable` here.
fn contains_code(codes: &Value, code: Code) -> bool {
    let name = format!("{code:?}").to_uppercase();
    let mut codes = codes.as_array().into_iter().flatten().filter_map(Value::as_str);
    codes.any(|listed| listed.replace('_', "") == name)
}
