//! The one error of this crate: gRPC's status with the google.rpc details that ruvd puts into it.

use std::{error, fmt, time::Duration};

use prost::Message;
use tonic::{Code, Status, TimeoutExpired};

use crate::rpc;

/// A call that failed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Error {
    /// gRPC's code.
    pub code: Code,
    /// One of `ErrorReason` without its prefix (`SESSION_NOT_FOUND`). Empty when the error is not
    /// ruvd's own: no daemon at the address, or a deadline.
    pub reason: String,
    /// What happened, for people.
    pub message: String,
    /// Every wrong field, for `INVALID_REQUEST`.
    pub violations: Vec<rpc::bad_request::FieldViolation>,
    /// After how long another try may help; `None` where waiting does not.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error that no daemon has sent.
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        Self::new(code, message.into(), &[])
    }

    pub(crate) fn late() -> Self {
        Self::local(Code::DeadlineExceeded, "the deadline has passed")
    }

    fn new(code: Code, message: String, details: &[prost_types::Any]) -> Self {
        let mut error = Self {
            code,
            reason: String::new(),
            message,
            violations: Vec::new(),
            retry_after: None,
        };
        for detail in details {
            // What cannot be decoded was written by whatever is in between; the status holds.
            let value = detail.value.as_slice();
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    if let Ok(info) = rpc::ErrorInfo::decode(value)
                        && info.domain == "ruvd"
                    {
                        error.reason = info.reason;
                    }
                }
                Some("google.rpc.BadRequest") => {
                    if let Ok(bad_request) = rpc::BadRequest::decode(value) {
                        error.violations = bad_request.field_violations;
                    }
                }
                Some("google.rpc.RetryInfo") => {
                    let delay = rpc::RetryInfo::decode(value).map(|info| info.retry_delay);
                    error.retry_after = delay.ok().flatten().and_then(|d| d.try_into().ok());
                }
                _ => {}
            }
        }
        error
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = rpc::Status::decode(status.details()).unwrap_or_default();
        Self::new(code(&status), status.message().to_owned(), &details.details)
    }
}

impl From<rpc::Status> for Error {
    fn from(status: rpc::Status) -> Self {
        Self::new(status.code.into(), status.message, &status.details)
    }
}

/// The code as other gRPC libraries have it: tonic says UNKNOWN, INTERNAL or CANCELLED of a
/// connection that broke, and CANCELLED of a deadline. Only a status that is made here, not by the
/// daemon, has a source.
fn code(status: &Status) -> Code {
    let Some(source) = error::Error::source(status) else {
        return status.code();
    };
    let mut causes = std::iter::successors(Some(source), |cause| cause.source());
    match status.code() {
        _ if causes.any(|cause| cause.is::<TimeoutExpired>()) => Code::DeadlineExceeded,
        Code::Unknown | Code::Internal | Code::Cancelled => Code::Unavailable,
        code => code,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" => write!(to, "{:?}: {}", self.code, self.message),
            reason => write!(to, "{reason}: {}", self.message),
        }
    }
}

impl error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataMap;

    fn any(name: &str, message: &impl Message) -> prost_types::Any {
        prost_types::Any {
            type_url: format!("type.googleapis.com/google.rpc.{name}"),
            value: message.encode_to_vec(),
        }
    }

    fn status(details: Vec<prost_types::Any>) -> Status {
        let details =
            rpc::Status { code: Code::InvalidArgument.into(), message: "no".into(), details };
        let details = details.encode_to_vec();
        Status::with_details_and_metadata(
            Code::InvalidArgument,
            "no",
            details.into(),
            MetadataMap::new(),
        )
    }

    fn info(domain: &str) -> rpc::ErrorInfo {
        rpc::ErrorInfo {
            reason: "INVALID_REQUEST".into(),
            domain: domain.into(),
            ..Default::default()
        }
    }

    /// The reason, the wrong fields and the delay are read out of the details.
    #[test]
    fn details_are_read() {
        let violation = rpc::bad_request::FieldViolation {
            field: "session_id".into(),
            description: "too long".into(),
            ..Default::default()
        };
        let error = Error::from(status(vec![
            any("ErrorInfo", &info("ruvd")),
            any("BadRequest", &rpc::BadRequest { field_violations: vec![violation.clone()] }),
            any(
                "RetryInfo",
                &rpc::RetryInfo {
                    retry_delay: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
                },
            ),
        ]));
        assert_eq!(error.code, Code::InvalidArgument);
        assert_eq!(error.reason, "INVALID_REQUEST");
        assert_eq!(error.violations, [violation]);
        assert_eq!(error.retry_after, Some(Duration::from_millis(1500)));
        assert_eq!(error.to_string(), "INVALID_REQUEST: no");
    }

    /// Somebody else's reason is not one of ruvd's, and what is no status at all is passed over.
    #[test]
    fn foreign_details_are_no_reason() {
        let foreign = Error::from(status(vec![any("ErrorInfo", &info("example.com"))]));
        let garbage = Status::with_details(Code::Internal, "no", b"\xff\xff"[..].to_vec().into());
        assert_eq!(foreign.reason, "");
        assert_eq!(Error::from(garbage).reason, "");
    }
}
