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
//! and [`v1`] holds the generated messages, which requests and answers are. The rules that this
//! layer follows are the same in the clients of all languages; see [`Completion`] for the one that
//! matters most.
#![warn(missing_docs)]

mod batch;
mod call;
mod client;
mod completion;
mod error;
mod requests;
mod service_config;
mod tracing;

/// The README's programs, so that they are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use batch::{Batch, BatchOutcome};
pub use client::{Client, DEFAULT_ADDRESS};
pub use completion::Completion;
pub use error::Error;
pub use rpc::bad_request::FieldViolation;
pub use tonic::Code;
pub use v1::{CompleteRequest, CreateSessionRequest, Message, Session, Tool};

/// The messages of the contract, generated from `session_service.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    include!("v1/ruvd.v1.rs");
}

/// The details of an error, generated from `google/rpc`.
#[allow(missing_docs, clippy::all)]
pub mod rpc {
    include!("v1/google.rpc.rs");
}
