//! The calls of the program `calls` that are about sessions.

use std::collections::HashMap;

use prost_types::FieldMask;
use ruvd_client::v1::*;
use ruvd_client::{Client, Error};

use crate::Outcome;
use crate::calls_output::{describe, message, print_messages, seconds, word};
use crate::output::{print_error, print_session};

pub(crate) async fn run(client: &Client) -> Outcome {
    create(client).await?;
    get(client).await?;
    list(client).await?;
    update(client).await;
    append(client).await;
    fork(client).await;
    compact(client).await
}

async fn create(client: &Client) -> Outcome {
    println!("# create");
    let request = CreateSessionRequest {
        session_id: "alpha".into(),
        system_prompt: "Be brief.".into(),
        messages: vec![
            Message { pinned: true, ..message(Role::User, "one") },
            message(Role::Assistant, "uno"),
            message(Role::User, "two"),
            message(Role::Assistant, "dos"),
        ],
        labels: labels(&[("user", "ada"), ("team", "a")]),
        context_window: Some(window(1, 4)),
        idle_timeout: Some(seconds(600)),
        model: "echo".into(),
        request_id: "create-1".into(),
        compaction_instruction: "Keep numbers.".into(),
        summary: "uno came first".into(),
        summary_exchange_count: Some(1),
    };
    describe(&client.create(request.clone()).await?);
    print_outcome(client.create(request.clone()).await);
    print_outcome(client.create(CreateSessionRequest { labels: labels(&[]), ..request }).await);
    let taken = CreateSessionRequest { session_id: "alpha".into(), ..Default::default() };
    print_outcome(client.create(taken).await);
    let made = client.create(CreateSessionRequest::default()).await?;
    println!("made {}", word(!made.id.is_empty()));
    client.end(made.id).await
}

async fn get(client: &Client) -> Outcome {
    println!("# get");
    print_messages(client, "alpha").await?;
    let basic = client.get("alpha", SessionView::Basic).await?;
    println!("messages {}", basic.messages.len());
    print_outcome(client.get("nobody", SessionView::Basic).await);
    Ok(())
}

async fn list(client: &Client) -> Outcome {
    println!("# list");
    for number in 1..=105 {
        let session_id = format!("p{number}");
        let labels = labels(&[("page", "yes")]);
        client.create(CreateSessionRequest { session_id, labels, ..Default::default() }).await?;
    }
    for filter in [&[("page", "yes")][..], &[("team", "a"), ("user", "ada")], &[("team", "none")]] {
        let label_filter = labels(filter);
        let request = ListSessionsRequest { label_filter, ..Default::default() };
        let found = client.list(request).await?;
        match (found.first(), found.last()) {
            (Some(first), Some(last)) => {
                println!("listed {} {} {}", found.len(), first.id, last.id);
            }
            _ => println!("listed 0"),
        }
    }
    Ok(())
}

async fn update(client: &Client) {
    println!("# update");
    let settings = UpdateSessionRequest {
        session_id: "alpha".into(),
        labels: labels(&[("team", "b")]),
        idle_timeout: Some(seconds(300)),
        context_window: Some(window(2, 6)),
        compaction_instruction: "Keep names.".into(),
        update_mask: None,
    };
    let paths = vec!["idle_timeout".into(), "compaction_instruction".into()];
    let defaults = UpdateSessionRequest {
        session_id: "alpha".into(),
        update_mask: Some(FieldMask { paths }),
        ..Default::default()
    };
    let nobody = UpdateSessionRequest {
        session_id: "nobody".into(),
        labels: labels(&[("a", "b")]),
        ..Default::default()
    };
    for request in [settings, defaults, nobody] {
        describe_outcome(client.update(request).await);
    }
}

async fn append(client: &Client) {
    println!("# append");
    let append = |session_id: &str, role, content| AppendMessagesRequest {
        session_id: session_id.into(),
        messages: vec![message(role, content)],
        ..Default::default()
    };
    for content in ["three", "three", "other"] {
        let request_id = "append-1".into();
        let request = AppendMessagesRequest { request_id, ..append("alpha", Role::User, content) };
        print_outcome(client.append(request).await);
    }
    let request = AppendMessagesRequest {
        summary: "uno, then dos".into(),
        summary_exchange_count: Some(2),
        ..append("alpha", Role::Assistant, "tres")
    };
    describe_outcome(client.append(request).await);
    print_outcome(client.append(append("nobody", Role::User, "hi")).await);
}

async fn fork(client: &Client) {
    println!("# fork");
    let of = |session_id: &str| ForkSessionRequest {
        session_id: session_id.into(),
        ..Default::default()
    };
    let fork = ForkSessionRequest {
        exchange_count: Some(1),
        new_session_id: "alpha-fork".into(),
        request_id: "fork-1".into(),
        ..of("alpha")
    };
    describe_outcome(client.fork(fork.clone()).await);
    let taken = ForkSessionRequest { new_session_id: "alpha".into(), ..of("alpha") };
    let too_many = ForkSessionRequest { exchange_count: Some(99), ..of("alpha") };
    for request in [fork, taken, too_many, of("nobody")] {
        print_outcome(client.fork(request).await);
    }
}

async fn compact(client: &Client) -> Outcome {
    println!("# compact");
    let turn = |number| {
        let question = message(Role::User, &format!("question {number}"));
        [question, message(Role::Assistant, &format!("answer {number}"))]
    };
    let window =
        ContextWindow { keep_exchanges: Some(1), max_exchanges: Some(10), ..Default::default() };
    let request = CreateSessionRequest {
        session_id: "beta".into(),
        messages: (1..=3).flat_map(turn).collect(),
        context_window: Some(window),
        ..Default::default()
    };
    client.create(request).await?;
    for dry_run in [true, false] {
        let request = CompactSessionRequest { session_id: "beta".into(), dry_run };
        let done = client.compact(request).await?;
        println!(
            "compaction exchanges={} kept={} before={} after={}",
            done.summarized_exchanges,
            done.kept_exchanges,
            done.bytes_before,
            word(done.bytes_after.is_some()),
        );
        let session = done.session.unwrap_or_default();
        let has_summary = word(!session.summary.is_empty());
        println!("summary {has_summary} of={}", session.summary_exchange_count);
        println!("compactions {} usage={}", session.compactions, word(done.usage.is_some()));
    }
    let again = CompactSessionRequest { session_id: "beta".into(), dry_run: false };
    println!("again exchanges={}", client.compact(again).await?.summarized_exchanges);
    let nobody = CompactSessionRequest { session_id: "nobody".into(), dry_run: false };
    print_error(&client.compact(nobody).await.unwrap_err());
    Ok(())
}

pub(crate) async fn end(client: &Client) -> Outcome {
    println!("# end");
    let messages = vec![message(Role::User, "bye")];
    let session_id = "alpha".to_owned();
    client.append(AppendMessagesRequest { session_id, messages, ..Default::default() }).await?;
    describe(&client.get("alpha", SessionView::Basic).await?);
    client.end("alpha").await?;
    println!("ended");
    print_error(&client.end("alpha").await.unwrap_err());
    client.end_if_exists("alpha").await?;
    println!("ended");
    Ok(())
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn window(keep: i32, max: i32) -> ContextWindow {
    ContextWindow {
        keep_exchanges: Some(keep),
        max_exchanges: Some(max),
        max_tokens: Some(100),
        rendering: Rendering::Messages.into(),
        compaction: Compaction::None.into(),
        keep_first: Some(1),
        compact_at: Some(0.5),
    }
}

fn print_outcome(outcome: Result<Session, Error>) {
    match outcome {
        Ok(session) => print_session(&session),
        Err(error) => print_error(&error),
    }
}

fn describe_outcome(outcome: Result<Session, Error>) {
    match outcome {
        Ok(session) => describe(&session),
        Err(error) => print_error(&error),
    }
}
