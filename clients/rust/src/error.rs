//! The error of this crate: a gRPC status with ruvd's google.rpc details.

use std::collections::HashMap;
use std::sync::Arc;
use std::{error, fmt, time::Duration};

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, RpcStatusExt, StatusExt};

use crate::v1::ErrorReason;

/// The reason of a request that gRPC refused for its size, before ruvd saw it.
pub const REQUEST_TOO_LARGE: &str = "REQUEST_TOO_LARGE";

// In the daemon's gRPC status for a request far above max_request_bytes, which has no details.
const TOO_LARGE_TEXT: &str = "message larger than max";

/// The error of a failed call.
///
/// Its [source](std::error::Error::source) is that of a connection which could not be made or broke;
/// an error that the daemon has sent has none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Error {
    /// The gRPC status code.
    pub code: Code,
    /// An `ErrorReason` without its prefix (`SESSION_NOT_FOUND`). Empty if the error does not come
    /// from ruvd (no daemon at the address, deadline exceeded). The client itself adds
    /// [`REQUEST_TOO_LARGE`].
    pub reason: String,
    /// A description for humans.
    pub message: String,
    /// All invalid fields, for `INVALID_REQUEST`.
    pub violations: Vec<FieldViolation>,
    /// The time to wait before a retry; `None` if the call is not worth a retry.
    pub retry_after: Option<Duration>,
    source: Option<Arc<Status>>,
}

impl Error {
    /// The reason as an enum. `None` if it is not ruvd's, or if only a later version knows it.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorReason> {
        ErrorReason::from_str_name(&format!("ERROR_REASON_{}", self.reason))
    }

    /// Creates the error of settings that cannot be used.
    pub(crate) fn invalid(message: impl AsRef<str>) -> Self {
        Self::local(Code::InvalidArgument, message.as_ref())
    }

    /// Creates an error of the client itself.
    pub(crate) fn local(code: Code, message: &str) -> Self {
        Self::new(code, message, &ErrorDetails::default())
    }

    /// Returns the error as the status of a batch item, without its details beyond the reason.
    pub(crate) fn to_status(&self) -> tonic_types::Status {
        let mut details = ErrorDetails::new();
        if !self.reason.is_empty() {
            details.set_error_info(&self.reason, "ruvd", HashMap::new());
        }
        let violations = self.violations.iter();
        for FieldViolation { field, description, .. } in violations {
            details.add_bad_request_violation(field, description);
        }
        let status = Status::with_error_details(self.code, &self.message, details);
        tonic_types::Status::decode(status.details()).unwrap_or_default()
    }

    pub(crate) fn timed_out() -> Self {
        Self::local(Code::DeadlineExceeded, "the deadline has passed")
    }

    fn new(code: Code, message: &str, details: &ErrorDetails) -> Self {
        let info = details.error_info().filter(|info| info.domain == "ruvd");
        let bad_request = details.bad_request();
        let mut reason = info.map(|info| info.reason.clone()).unwrap_or_default();
        let mut message = message.to_owned();
        if reason.is_empty() && code == Code::ResourceExhausted && message.contains(TOO_LARGE_TEXT)
        {
            REQUEST_TOO_LARGE.clone_into(&mut reason);
            message += " (the daemon's max_request_bytes)";
        }
        Self {
            code,
            reason,
            message,
            violations: bad_request.map(|it| it.field_violations.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            source: None,
        }
    }
}

/// Whether a daemon that gives this reason is left. It has stored nothing.
pub(crate) fn is_left(error: &Error) -> bool {
    matches!(error.kind(), Some(ErrorReason::ShuttingDown | ErrorReason::OwnershipLost))
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // For a lost connection tonic returns UNKNOWN, INTERNAL or CANCELLED. Only a status that
        // tonic made, not the daemon, has a source.
        let is_connection_error = error::Error::source(&status).is_some();
        let code = if is_connection_error { Code::Unavailable } else { status.code() };
        let error = Self::new(code, status.message(), &status.get_error_details());
        Self { source: is_connection_error.then(|| Arc::new(status)), ..error }
    }
}

/// Converts the status of a batch item to the error of an equivalent single call.
impl From<tonic_types::Status> for Error {
    fn from(status: tonic_types::Status) -> Self {
        Self::new(status.code.into(), &status.message, &status.get_error_details())
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

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        // The status itself says the same as this error.
        self.source.as_deref().and_then(error::Error::source)
    }
}
