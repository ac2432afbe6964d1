//! The one error of this crate: gRPC's status with the google.rpc details that ruvd puts into it.

use std::{error, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, RpcStatusExt, StatusExt};

/// A call that failed.
#[derive(Clone, Debug)]
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
    pub violations: Vec<FieldViolation>,
    /// After how long another try may help; `None` where waiting does not.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// An error that no daemon has sent.
    pub(crate) fn local(code: Code, message: &str) -> Self {
        Self::new(code, message, ErrorDetails::default())
    }

    pub(crate) fn late() -> Self {
        Self::local(Code::DeadlineExceeded, "the deadline has passed")
    }

    fn new(code: Code, message: &str, details: ErrorDetails) -> Self {
        let info = details.error_info().filter(|info| info.domain == "ruvd");
        let bad_request = details.bad_request();
        Self {
            code,
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: message.to_owned(),
            violations: bad_request.map(|it| it.field_violations.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // tonic says UNKNOWN, INTERNAL or CANCELLED of a connection that broke. Only a status that
        // is made here, not by the daemon, has a source.
        let lost = error::Error::source(&status).is_some();
        let code = if lost { Code::Unavailable } else { status.code() };
        Self::new(code, status.message(), status.get_error_details())
    }
}

/// The error of one item of a batch: as its own call would have failed.
impl From<tonic_types::Status> for Error {
    fn from(status: tonic_types::Status) -> Self {
        Self::new(status.code.into(), &status.message, status.get_error_details())
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
