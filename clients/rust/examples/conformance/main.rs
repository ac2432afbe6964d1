//! The program of `clients/CONFORMANCE.md`: `conformance scenario|calls|restart|failover|identity WAY`.
//!
//! Its output is the same in every language. It uses only the crate's public API.
#![allow(clippy::wildcard_imports)] // The generated messages.

mod calls;
mod calls_output;
mod calls_sessions;
mod failover;
mod identity;
mod output;

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use ruvd_client::v1::completion_event::Event;
use ruvd_client::v1::delta::Part;
use ruvd_client::v1::*;
use ruvd_client::{Client, Completion, Error};
use tokio::time::sleep;

use crate::output::{name, print_error, print_item, print_session, reason, words};

type Outcome = Result<(), Error>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["scenario"] => Ok(scenario().await?),
        ["calls"] => Ok(calls::run(&Client::from_env()?).await?),
        ["restart"] => Ok(restart().await?),
        ["failover"] => failover::run().await,
        ["identity", way] => identity::run(way).await,
        _ => Err("usage: conformance scenario|calls|restart|failover|identity WAY".into()),
    }
}

async fn scenario() -> Outcome {
    let client = Client::from_env()?;
    sessions(&client).await?;
    streams(&client).await?;
    request_id(&client).await?;
    cuts(&client).await?;
    cancel(&client).await?;
    busy(&client).await?;
    errors(&client).await?;
    too_large(&client).await;
    fork(&client).await?;
    long_history(&client).await?;
    batch(&client).await?;
    deadline(&client).await?;
    models(&client).await?;
    nobody().await
}

async fn sessions(client: &Client) -> Outcome {
    println!("# sessions");
    let request = CreateSessionRequest {
        session_id: "alpha".into(),
        system_prompt: "Be brief.".into(),
        labels: HashMap::from([("team".into(), "a".into())]),
        ..Default::default()
    };
    print_session(&client.create(request).await?);
    complete(client, session_request("one two three", "alpha")).await;
    complete(client, session_request("four", "alpha")).await;
    let session = client.get("alpha", SessionView::Full).await?;
    print_session(&session);
    for message in &session.messages {
        let role = message.role().as_str_name().trim_start_matches("ROLE_");
        println!("message {role} [{}]", message.content);
    }
    for session in client.list(ListSessionsRequest::default()).await? {
        println!("listed {}", session.id);
    }
    client.end("alpha").await?;
    println!("ended");
    print_error(&client.get("alpha", SessionView::Basic).await.unwrap_err());
    print_error(&client.end("alpha").await.unwrap_err());
    Ok(())
}

async fn streams(client: &Client) -> Outcome {
    println!("# stream");
    print_events(client.complete("alpha beta gamma")).await?;
    println!("# unicode");
    complete(client, "Grüße aus Köln".into()).await;
    complete(client, "世界 👩\u{200d}🚀 ok".into()).await;
    complete(client, "नमस्ते दुनिया".into()).await;
    complete(client, "e\u{301} A\u{30a}".into()).await;
    Ok(())
}

async fn request_id(client: &Client) -> Outcome {
    println!("# request id");
    for content in ["once only", "once only", "other"] {
        let request =
            CompleteRequest { request_id: "r-1".into(), ..session_request(content, "beta") };
        complete(client, request).await;
    }
    print_session(&client.get("beta", SessionView::Basic).await?);
    Ok(())
}

async fn cuts(client: &Client) -> Outcome {
    println!("# cut after the third event");
    let cut = connect("RUVD_CUT_THIRD")?;
    print_events(cut.complete(session_request("a b c d e f", "gamma"))).await?;
    print_session(&cut.get("gamma", SessionView::Basic).await?);
    println!("# cut always");
    let cut = connect("RUVD_CUT_ALWAYS")?;
    complete(&cut, session_request("a b c d e f g h", "delta")).await;
    print_session(&cut.get("delta", SessionView::Basic).await?);
    println!("# cut before the first event");
    complete(&connect("RUVD_CUT_FIRST")?, session_request("x y z", "epsilon")).await;
    print_session(&client.get("epsilon", SessionView::Basic).await?);
    Ok(())
}

async fn cancel(client: &Client) -> Outcome {
    println!("# cancel");
    create(client, "zeta").await?;
    let answer = client.complete(session_request(words(200), "zeta"));
    print_texts(answer.take(3)).await; // Dropping it cancels it.
    let idle = wait_until_idle(client, "zeta").await?;
    println!("{}", if idle { "cancelled" } else { "still running" });
    print_session(&client.get("zeta", SessionView::Basic).await?);
    Ok(())
}

async fn busy(client: &Client) -> Outcome {
    println!("# busy");
    create(client, "eta").await?;
    let mut first = client.complete(session_request(words(200), "eta"));
    first.try_next().await?;
    let rejecting =
        CompleteRequest { if_busy: IfBusy::Reject.into(), ..session_request("no", "eta") };
    complete(client, rejecting).await;
    let interrupting =
        CompleteRequest { if_busy: IfBusy::Interrupt.into(), ..session_request("mine", "eta") };
    complete(client, interrupting).await;
    while let Some(text) = first.next().await {
        if let Err(error) = text {
            print_error(&error);
        }
    }
    print_session(&client.get("eta", SessionView::Basic).await?);
    Ok(())
}

async fn errors(client: &Client) -> Outcome {
    println!("# errors");
    for reason in (1..).map_while(|number| ErrorReason::try_from(number).ok()) {
        let reason = reason.as_str_name().trim_start_matches("ERROR_REASON_");
        println!("fault {reason}");
        complete(client, format!("!fault {reason}").into()).await;
    }
    println!("# error after text");
    complete(client, session_request("!fault ENGINE_UNAVAILABLE one two", "theta")).await;
    print_error(&client.get("theta", SessionView::Basic).await.unwrap_err());
    println!("# wrong fields");
    let options = CompletionOptions { temperature: Some(3.0), ..Default::default() };
    let invalid = CompleteRequest { options: Some(options), ..session_request("hi", "no spaces") };
    complete(client, invalid).await;
    Ok(())
}

async fn too_large(client: &Client) {
    println!("# too large");
    complete(client, "x".repeat(5 << 20).into()).await;
}

async fn long_history(client: &Client) -> Outcome {
    println!("# long history");
    let user = |number| Message {
        role: Role::User.into(),
        content: format!("m{number}"),
        ..Default::default()
    };
    let request = CreateSessionRequest {
        session_id: "mu".into(),
        messages: (1..=1000).map(user).collect(),
        ..Default::default()
    };
    client.create(request).await?;
    complete(client, session_request("end", "mu")).await;
    let session = client.get("mu", SessionView::Full).await?;
    print_session(&session);
    let content = |message: Option<&Message>| message.map_or("", |it| &it.content).to_owned();
    let (first, last) = (content(session.messages.first()), content(session.messages.last()));
    println!("history {} [{first}] [{last}]", session.messages.len());
    Ok(())
}

async fn fork(client: &Client) -> Outcome {
    println!("# fork");
    complete(client, session_request("first", "iota")).await;
    complete(client, session_request("second", "iota")).await;
    let request = ForkSessionRequest {
        session_id: "iota".into(),
        exchange_count: Some(1),
        new_session_id: "iota-fork".into(),
        ..Default::default()
    };
    print_session(&client.fork(request).await?);
    complete(client, session_request("third", "iota-fork")).await;
    print_session(&client.get("iota", SessionView::Basic).await?);
    print_session(&client.get("iota-fork", SessionView::Basic).await?);
    Ok(())
}

async fn batch(client: &Client) -> Outcome {
    println!("# batch");
    let items = vec![
        "b0".into(),
        "!fault ENGINE_REJECTED".into(),
        session_request("b2", "kappa"),
        session_request("b3", "kappa"),
    ];
    let mut batch = client.batch(BatchCompleteRequest { items, ..Default::default() });
    let mut results = BTreeMap::new();
    let mut summary = None;
    while let Some(event) = batch.try_next().await? {
        match event {
            batch_complete_response::Event::Result(result) => {
                results.insert(result.index, result.outcome);
            }
            batch_complete_response::Event::Summary(totals) => summary = Some(totals),
            _ => {} // Part of a message that is too large for one response.
        }
    }
    for (index, outcome) in results {
        print_item(index, outcome.as_ref());
    }
    if let Some(summary) = summary {
        println!("summary succeeded={} failed={}", summary.succeeded, summary.failed);
    }
    print_session(&client.get("kappa", SessionView::Basic).await?);
    Ok(())
}

async fn deadline(client: &Client) -> Outcome {
    println!("# deadline");
    create(client, "lambda").await?;
    let answer = client.complete(session_request(words(200), "lambda"));
    print_codes(answer.timeout(Duration::from_millis(400)), "").await;
    let idle = wait_until_idle(client, "lambda").await?;
    println!("{}", if idle { "over" } else { "still running" });
    print_session(&client.get("lambda", SessionView::Basic).await?);
    Ok(())
}

async fn models(client: &Client) -> Outcome {
    println!("# models");
    let offered = client.models().await?;
    for model in &offered.models {
        println!("model {model}");
    }
    println!("default {}", offered.default_model);
    Ok(())
}

async fn nobody() -> Outcome {
    println!("# nobody there");
    let client = connect("RUVD_NOBODY")?;
    print_error(&client.models().await.unwrap_err());
    print_codes(client.complete("hi").timeout(Duration::from_millis(500)), " -").await;
    Ok(())
}

async fn restart() -> Outcome {
    // A daemon may take long to start on a busy machine.
    let client = Client::from_env()?.with_reconnect(Duration::from_secs(60));
    let mut answer = client.complete(CompleteRequest {
        on_disconnect: OnDisconnect::Continue.into(),
        ..session_request(words(40), "omega")
    });
    let mut received = answer.try_next().await?.unwrap_or_default();
    println!("ready");
    io::stdout().flush().expect("stdout is open");
    let end = loop {
        match answer.next().await {
            Some(Ok(text)) => received += &text,
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    match end {
        Ok(()) => println!("text [{received}]"),
        Err(error) => print_error(&error),
    }
    match client.get("omega", SessionView::Basic).await {
        Ok(session) => print_session(&session),
        Err(error) => print_error(&error),
    }
    Ok(())
}

fn connect(variable: &str) -> Result<Client, Error> {
    Client::new(&env::var(variable).unwrap_or_default())
}

fn session_request(content: impl Into<String>, session_id: &str) -> CompleteRequest {
    CompleteRequest::from(content.into()).in_session(session_id)
}

async fn create(client: &Client, session_id: &str) -> Outcome {
    let request = CreateSessionRequest { session_id: session_id.into(), ..Default::default() };
    client.create(request).await.map(drop)
}

/// Waits up to a minute and returns whether the session has no running completion.
async fn wait_until_idle(client: &Client, session_id: &str) -> Result<bool, Error> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if client.get(session_id, SessionView::Basic).await?.running_completion_id.is_empty() {
            return Ok(true);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(false)
}

async fn complete(client: &Client, request: CompleteRequest) {
    let mut answer = client.complete(request);
    print_texts(&mut answer).await;
    if let Some(finished) = answer.finished() {
        let (sequence, exchanges) = (answer.last_sequence(), finished.exchange_count);
        println!("finished {} sequence={sequence} exchanges={exchanges}", reason(finished));
    }
}

async fn print_texts(mut texts: impl StreamExt<Item = Result<String, Error>> + Unpin) {
    while let Some(text) = texts.next().await {
        match text {
            Ok(text) => println!("text [{text}]"),
            Err(error) => print_error(&error),
        }
    }
}

async fn print_events(mut answer: Completion) -> Outcome {
    let mut events = answer.events();
    while let Some(event) = events.try_next().await? {
        match event.event {
            Some(Event::Started(_)) => println!("event {} started", event.sequence),
            Some(Event::Delta(Delta { part: Some(Part::Text(text)) })) => {
                println!("event {} delta [{text}]", event.sequence);
            }
            Some(Event::Finished(finished)) => {
                let content = finished.message.as_ref().map_or("", |message| &message.content);
                println!("event {} finished {} [{content}]", event.sequence, reason(&finished));
            }
            other => println!("event {} {other:?}", event.sequence),
        }
    }
    Ok(())
}

/// Prints the code of the error that ends the answer, but no text.
async fn print_codes(mut answer: Completion, suffix: &str) {
    match answer.text().await {
        Ok(text) => println!("text [{text}]"),
        Err(error) => println!("error {}{suffix}", name(error.code)),
    }
}
