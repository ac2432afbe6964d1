//! The Rust client of ruvd: sessions with a language model over gRPC.
//!
//! Your service sends only the new message; the daemon beside it keeps the conversation.
//!
//! ```no_run
//! use futures_util::TryStreamExt;
//! use ruvd_client::{Client, CompleteRequest};
//!
//! # async fn run() -> Result<(), ruvd_client::Error> {
//! let client = Client::from_env()?;
//! let mut answer = client.complete(CompleteRequest::from("What is a sidecar?").in_session("ada"));
//! while let Some(text) = answer.try_next().await? {
//!     println!("{text}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] has the methods of `ruvd.v1.SessionService`, [`Completion`] is a running completion,
//! and [`v1`] has the generated messages for requests and responses.

mod addresses;
mod batch;
mod builder;
mod calls;
mod client;
mod completion;
mod connections;
#[cfg(test)]
mod daemon_tests;
mod error;
#[cfg(test)]
mod failover_tests;
mod parts;
mod requests;
#[cfg(test)]
mod scripted_daemon;
mod security;
#[cfg(test)]
mod tests;
mod tries;

/// The README's examples, compiled as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use batch::Batch;
pub use builder::{ClientBuilder, DEFAULT_ADDRESS};
pub use client::Client;
pub use completion::Completion;
pub use error::{Error, REQUEST_TOO_LARGE};
pub use security::Tls;
pub use tonic::{Code, metadata::MetadataMap};
pub use tonic_types::FieldViolation;
pub use v1::{CompleteRequest, CreateSessionRequest, ErrorReason, Message, Session, Tool};

/// The messages generated from `session_service.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!("v1/ruvd.v1.rs");
}

/// Creates a request with one user message.
impl From<&str> for CompleteRequest {
    fn from(content: &str) -> Self {
        let role = v1::Role::User.into();
        let message = Message { role, content: content.into(), ..Default::default() };
        Self { messages: vec![message], ..Default::default() }
    }
}

/// Creates a request with one user message.
impl From<String> for CompleteRequest {
    fn from(content: String) -> Self {
        content.as_str().into()
    }
}

impl CompleteRequest {
    /// Sets the session, which is created if it does not exist. Without it, it is stateless.
    #[must_use]
    pub fn in_session(mut self, session_id: impl Into<String>) -> Self {
        self.session_id = session_id.into();
        self
    }

    /// Creates the session anew if it was evicted or has expired. Without it, the completion fails
    /// with `SESSION_EVICTED` or `SESSION_EXPIRED`.
    #[must_use]
    pub fn recreate_if_gone(mut self) -> Self {
        self.recreate_if_gone = true;
        self
    }
}

impl Message {
    /// Creates the message with a tool call's result, for the next turn.
    #[must_use]
    pub fn tool_result(call: &v1::ToolCall, content: impl Into<String>) -> Self {
        let role = v1::Role::Tool.into();
        let tool_call_id = call.id.clone();
        Self { role, tool_call_id, content: content.into(), ..Default::default() }
    }
}
