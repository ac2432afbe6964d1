//! The program `failover`: one call for each line of standard input.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use futures_util::TryStreamExt;
use ruvd_client::v1::*;
use ruvd_client::{Client, Completion};

use crate::output::{print_error, print_item, print_session, reason};
use crate::{Outcome, session_request};

/// Makes one call for each line of standard input.
pub(crate) async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let client = match Client::from_env() {
        Ok(client) => client,
        Err(refused) => {
            println!("refused {}", refused.message.replace('\n', " "));
            return Ok(());
        }
    };
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (name, session) = (word(), word().trim_start_matches('-'));
        if let Err(error) = call(&client, name, session, word()).await {
            print_error(&error);
        }
        io::stdout().flush()?;
    }
    Ok(())
}

async fn call(client: &Client, name: &str, session: &str, text: &str) -> Outcome {
    let session_id = session.to_owned();
    match name {
        "complete" => stream(client.complete(turn(session, text))).await?,
        "collect" => {
            println!("collected [{}]", client.complete(turn(session, text)).text().await?);
        }
        "batch" => batch(client, format!("{session} {text}").split_whitespace()).await?,
        "create" => {
            let request = CreateSessionRequest { session_id, ..Default::default() };
            println!("created {}", client.create(request).await?.id);
        }
        "append" => {
            let messages = CompleteRequest::from(text).messages;
            let request = AppendMessagesRequest { session_id, messages, ..Default::default() };
            println!("appended messages={}", client.append(request).await?.message_count);
        }
        "update" => {
            let labels = HashMap::from([("value".into(), text.into())]);
            let update_mask = Some(prost_types::FieldMask { paths: vec!["labels".into()] });
            let request =
                UpdateSessionRequest { session_id, labels, update_mask, ..Default::default() };
            client.update(request).await?;
            println!("updated");
        }
        "fork" => {
            let new_session_id = text.to_owned();
            let request = ForkSessionRequest { session_id, new_session_id, ..Default::default() };
            println!("forked exchanges={}", client.fork(request).await?.exchange_count);
        }
        "get" => print_session(&client.get(session, SessionView::Basic).await?),
        "end" => {
            client.end(session).await?;
            println!("ended");
        }
        "models" => {
            client.models().await?;
            println!("models ok");
        }
        "cancel" => {
            let request_id = text.to_owned();
            let request = CancelCompletionRequest { session_id, request_id, ..Default::default() };
            client.cancel(request).await?;
            println!("cancelled");
        }
        _ => println!("unknown call {name}"),
    }
    Ok(())
}

/// Returns the request of a turn, from its session and from its request id and text.
fn turn(session: &str, rest: &str) -> CompleteRequest {
    let (request_id, text) = rest.split_once(' ').unwrap_or_default();
    CompleteRequest { request_id: request_id.into(), ..session_request(text, session) }
}

async fn stream(mut answer: Completion) -> Outcome {
    while let Some(text) = answer.try_next().await? {
        println!("text [{text}]");
        io::stdout().flush().expect("stdout is open");
    }
    if let Some(finished) = answer.finished() {
        println!("finished {} exchanges={}", reason(finished), finished.exchange_count);
    }
    Ok(())
}

async fn batch(client: &Client, words: impl Iterator<Item = &str>) -> Outcome {
    let items = words.map(CompleteRequest::from).collect();
    let mut batch = client.batch(BatchCompleteRequest { items, ..Default::default() });
    let mut results = BTreeMap::new();
    while let Some(event) = batch.try_next().await? {
        if let batch_complete_response::Event::Result(result) = event {
            results.insert(result.index, result.outcome);
        }
    }
    for (index, outcome) in results {
        print_item(index, outcome.as_ref());
    }
    Ok(())
}
