//! The Rust client of ruvd: sessions with a language model over gRPC.
//!
//! Send only the new message; the daemon beside your service keeps the conversation.
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
//! [`Client`] has the verbs of `ruvd.v1.SessionService`, [`Completion`] is an answer on its way,
//! and [`v1`] holds the generated messages, which requests and answers are.
#![warn(missing_docs)]

mod client;
mod completion;
mod error;
#[cfg(test)]
mod tests;

/// The README's programs, so that they are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use client::{Client, DEFAULT_ADDRESS};
pub use completion::Completion;
pub use error::Error;
pub use tonic::Code;
pub use tonic_types::FieldViolation;
pub use v1::{CompleteRequest, CreateSessionRequest, Message, Session, Tool};

/// The messages of the contract, generated from `session_service.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    include!("v1/ruvd.v1.rs");
}

/// One message of the user.
impl From<&str> for CompleteRequest {
    fn from(content: &str) -> Self {
        let role = v1::Role::User.into();
        let message = Message { role, content: content.into(), ..Default::default() };
        Self { messages: vec![message], ..Default::default() }
    }
}

/// One message of the user.
impl From<String> for CompleteRequest {
    fn from(content: String) -> Self {
        content.as_str().into()
    }
}

impl CompleteRequest {
    /// The same in a session, which is created if there is none; without, it is stateless.
    #[must_use]
    pub fn in_session(mut self, session_id: impl Into<String>) -> Self {
        self.session_id = session_id.into();
        self
    }
}
