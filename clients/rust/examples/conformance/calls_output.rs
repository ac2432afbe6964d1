//! What the program `calls` prints, and the values that several of its calls have.

use std::collections::BTreeMap;

use prost_types::Duration;
use ruvd_client::v1::{Message, Role, Session, SessionView, Usage};
use ruvd_client::{Client, Completion};

use crate::Outcome;
use crate::output::{print_error, print_session, reason};

pub(crate) fn message(role: Role, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), ..Default::default() }
}

pub(crate) fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// Waits for the whole answer and prints it, or its error.
pub(crate) async fn print_answer(answer: &mut Completion) {
    if let Err(error) = answer.text().await {
        return print_error(&error);
    }
    let finished = answer.finished().cloned().unwrap_or_default();
    let message = finished.message.clone().unwrap_or_default();
    let (reason, exchanges) = (reason(&finished), finished.exchange_count);
    println!("answer {reason} [{}] exchanges={exchanges}", message.content);
    print_calls(&message);
    print_usage(finished.usage);
}

pub(crate) fn print_calls(message: &Message) {
    for call in &message.tool_calls {
        println!("call {} {} {}", call.id, call.name, call.arguments);
    }
}

pub(crate) async fn print_messages(client: &Client, id: &str) -> Outcome {
    for message in client.get(id, SessionView::Full).await?.messages {
        let role = message.role().as_str_name().trim_start_matches("ROLE_");
        let pinned = if message.pinned { " pinned" } else { "" };
        let of = match message.tool_call_id.as_str() {
            "" => String::new(),
            id => format!(" of={id}"),
        };
        println!("message {role} [{}]{pinned}{of}", message.content);
        print_calls(&message);
    }
    Ok(())
}

/// Prints all fields of a session but its messages.
pub(crate) fn describe(session: &Session) {
    print_session(session);
    println!("prompt [{}]", session.system_prompt);
    let sorted: BTreeMap<_, _> = session.labels.iter().collect();
    print!("labels");
    for (key, value) in sorted {
        print!(" {key}={value}");
    }
    println!();
    let window = session.context_window.unwrap_or_default();
    println!(
        "window keep={} max={} tokens={}",
        optional(window.keep_exchanges),
        optional(window.max_exchanges),
        optional(window.max_tokens),
    );
    let rendering = window.rendering().as_str_name().trim_start_matches("RENDERING_");
    println!("rendering {rendering} first={}", optional(window.keep_first));
    let compaction = window.compaction().as_str_name().trim_start_matches("COMPACTION_");
    println!("compaction {compaction} at={}", optional(window.compact_at));
    println!("instruction [{}]", session.compaction_instruction);
    println!("summary [{}] of={}", session.summary, session.summary_exchange_count);
    println!("compactions {}", session.compactions);
    let idle = session.idle_timeout.unwrap_or_default().seconds;
    let parent = if session.parent_id.is_empty() { "-" } else { &session.parent_id };
    println!("settings idle={idle}s model={} parent={parent}", session.model);
    print_usage(session.usage);
    println!("create_time {}", word(session.create_time.is_some()));
    println!("last_used_time {}", word(session.last_used_time.is_some()));
    println!("expire_time {}", word(session.expire_time.is_some()));
}

pub(crate) fn print_usage(usage: Option<Usage>) {
    let usage = usage.unwrap_or_default();
    let (prompt, answer) = (usage.prompt_tokens, usage.completion_tokens);
    println!("usage prompt={prompt} cached={} answer={answer}", optional(usage.cached_tokens));
}

/// Returns a value, or - if it is not set.
pub(crate) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub(crate) fn word(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
