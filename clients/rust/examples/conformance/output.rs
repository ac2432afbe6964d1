//! What the programs print.

use ruvd_client::v1::batch_result::Outcome;
use ruvd_client::v1::{Finished, Session};
use ruvd_client::{Code, Error};

pub(crate) fn words(count: usize) -> String {
    let words: Vec<_> = (1..=count).map(|number| format!("w{number}")).collect();
    words.join(" ")
}

pub(crate) fn print_session(session: &Session) {
    let (messages, exchanges) = (session.message_count, session.exchange_count);
    println!("session {} messages={messages} exchanges={exchanges}", session.id);
}

pub(crate) fn print_error(error: &Error) {
    let retry = error.retry_after.map(|delay| format!(" retry={}ms", delay.as_millis()));
    println!("error {}{}", code_and_reason(error), retry.unwrap_or_default());
    for violation in &error.violations {
        println!("violation {}: {}", violation.field, violation.description);
    }
}

fn code_and_reason(error: &Error) -> String {
    let reason = if error.reason.is_empty() { "-" } else { &error.reason };
    format!("{} {reason}", name(error.code))
}

pub(crate) fn reason(finished: &Finished) -> &'static str {
    finished.finish_reason().as_str_name().trim_start_matches("FINISH_REASON_")
}

/// Returns gRPC's name of a code: `NOT_FOUND` for `NotFound`.
pub(crate) fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// Prints the outcome of a batch's item.
pub(crate) fn print_item(index: i32, outcome: Option<&Outcome>) {
    match outcome {
        Some(Outcome::Completion(_)) => println!("item {index} [{}]", content(outcome)),
        Some(Outcome::Error(status)) => {
            println!("item {index} error {}", code_and_reason(&status.clone().into()));
        }
        _ => println!("item {index} without an outcome"),
    }
}

/// Returns the text of an item's answer.
pub(crate) fn content(outcome: Option<&Outcome>) -> &str {
    let Some(Outcome::Completion(completion)) = outcome else { return "" };
    let message = completion.finished.as_ref().and_then(|end| end.message.as_ref());
    message.map_or("", |message| &message.content)
}
