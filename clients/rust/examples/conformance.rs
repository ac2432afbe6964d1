//! The program of `clients/CONFORMANCE.md`: `conformance scenario`, or `conformance restart`.
//!
//! It prints what every client prints, so it uses what users use: the crate's own words.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use ruvd_client::v1::completion_event::Event;
use ruvd_client::v1::delta::Part;
use ruvd_client::v1::*;
use ruvd_client::{Client, Code, Completion, Error};
use tokio::time::sleep;

type Outcome = Result<(), Error>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("scenario") => Ok(scenario().await?),
        Some("restart") => Ok(restart().await?),
        _ => Err("usage: conformance scenario|restart".into()),
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
    fork(&client).await?;
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
    say(client, asked("one two three", "alpha")).await;
    say(client, asked("four", "alpha")).await;
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
    say(client, "Grüße aus Köln".into()).await;
    say(client, "世界 👩\u{200d}🚀 ok".into()).await;
    say(client, "नमस्ते दुनिया".into()).await;
    say(client, "e\u{301} A\u{30a}".into()).await;
    Ok(())
}

async fn request_id(client: &Client) -> Outcome {
    println!("# request id");
    for content in ["once only", "once only", "other"] {
        let request = CompleteRequest { request_id: "r-1".into(), ..asked(content, "beta") };
        say(client, request).await;
    }
    print_session(&client.get("beta", SessionView::Basic).await?);
    Ok(())
}

async fn cuts(client: &Client) -> Outcome {
    println!("# cut after the third event");
    let cut = at("RUVD_CUT_THIRD")?;
    print_events(cut.complete(asked("a b c d e f", "gamma"))).await?;
    print_session(&cut.get("gamma", SessionView::Basic).await?);
    println!("# cut always");
    let cut = at("RUVD_CUT_ALWAYS")?;
    say(&cut, asked("a b c d e f g h", "delta")).await;
    print_session(&cut.get("delta", SessionView::Basic).await?);
    println!("# cut before the first event");
    say(&at("RUVD_CUT_FIRST")?, asked("x y z", "epsilon")).await;
    print_session(&client.get("epsilon", SessionView::Basic).await?);
    Ok(())
}

async fn cancel(client: &Client) -> Outcome {
    println!("# cancel");
    create(client, "zeta").await?;
    let answer = client.complete(asked(words(200), "zeta"));
    print_texts(answer.take(3)).await; // Dropped then, which cancels it.
    let over = stopped(client, "zeta").await?;
    println!("{}", if over { "cancelled" } else { "still running" });
    print_session(&client.get("zeta", SessionView::Basic).await?);
    Ok(())
}

async fn busy(client: &Client) -> Outcome {
    println!("# busy");
    create(client, "eta").await?;
    let mut first = client.complete(asked(words(200), "eta"));
    first.try_next().await?;
    let rejected = CompleteRequest { if_busy: IfBusy::Reject.into(), ..asked("no", "eta") };
    say(client, rejected).await;
    let interrupting =
        CompleteRequest { if_busy: IfBusy::Interrupt.into(), ..asked("mine", "eta") };
    say(client, interrupting).await;
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
        say(client, format!("!fault {reason}").into()).await;
    }
    println!("# error after text");
    say(client, asked("!fault ENGINE_UNAVAILABLE one two", "theta")).await;
    print_error(&client.get("theta", SessionView::Basic).await.unwrap_err());
    println!("# wrong fields");
    let options = CompletionOptions { temperature: Some(3.0), ..Default::default() };
    let wrong = CompleteRequest { options: Some(options), ..asked("hi", "no spaces") };
    say(client, wrong).await;
    Ok(())
}

async fn fork(client: &Client) -> Outcome {
    println!("# fork");
    say(client, asked("first", "iota")).await;
    say(client, asked("second", "iota")).await;
    let request = ForkSessionRequest {
        session_id: "iota".into(),
        exchange_count: Some(1),
        new_session_id: "iota-fork".into(),
        ..Default::default()
    };
    print_session(&client.fork(request).await?);
    say(client, asked("third", "iota-fork")).await;
    print_session(&client.get("iota", SessionView::Basic).await?);
    print_session(&client.get("iota-fork", SessionView::Basic).await?);
    Ok(())
}

async fn batch(client: &Client) -> Outcome {
    println!("# batch");
    let items = vec![
        "b0".into(),
        "!fault ENGINE_REJECTED".into(),
        asked("b2", "kappa"),
        asked("b3", "kappa"),
    ];
    let mut batch = client.batch(BatchCompleteRequest { items, ..Default::default() });
    let mut results = BTreeMap::new();
    let mut summary = None;
    while let Some(event) = batch.try_next().await? {
        match event {
            batch_complete_response::Event::Result(result) => {
                results.insert(result.index, result.outcome);
            }
            batch_complete_response::Event::Summary(sums) => summary = Some(sums),
        }
    }
    for (index, outcome) in results {
        match outcome {
            Some(batch_result::Outcome::Completion(completion)) => {
                let message = completion.finished.and_then(|end| end.message);
                println!("item {index} [{}]", message.unwrap_or_default().content);
            }
            Some(batch_result::Outcome::Error(status)) => {
                print!("item {index} ");
                print_error(&status.into());
            }
            None => println!("item {index} without an outcome"),
        }
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
    let answer = client.complete(asked(words(200), "lambda"));
    print_codes(answer.timeout(Duration::from_millis(400)), "").await;
    let over = stopped(client, "lambda").await?;
    println!("{}", if over { "over" } else { "still running" });
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
    let client = at("RUVD_NOBODY")?;
    print_error(&client.models().await.unwrap_err());
    print_codes(client.complete("hi").timeout(Duration::from_millis(500)), " -").await;
    Ok(())
}

async fn restart() -> Outcome {
    let client = Client::from_env()?;
    let mut answer = client.complete(CompleteRequest {
        on_disconnect: OnDisconnect::Continue.into(),
        ..asked(words(40), "omega")
    });
    let mut all = answer.try_next().await?.unwrap_or_default();
    println!("ready");
    io::stdout().flush().expect("stdout is open");
    let ended = loop {
        match answer.next().await {
            Some(Ok(text)) => all += &text,
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    match ended {
        Ok(()) => println!("text [{all}]"),
        Err(error) => print_error(&error),
    }
    match client.get("omega", SessionView::Basic).await {
        Ok(session) => print_session(&session),
        Err(error) => print_error(&error),
    }
    Ok(())
}

fn at(variable: &str) -> Result<Client, Error> {
    Client::new(&std::env::var(variable).unwrap_or_default())
}

fn asked(content: impl Into<String>, session_id: &str) -> CompleteRequest {
    CompleteRequest::from(content.into()).in_session(session_id)
}

fn words(count: usize) -> String {
    let words: Vec<_> = (1..=count).map(|number| format!("w{number}")).collect();
    words.join(" ")
}

async fn create(client: &Client, session_id: &str) -> Outcome {
    let request = CreateSessionRequest { session_id: session_id.into(), ..Default::default() };
    client.create(request).await.map(drop)
}

/// Whether nothing runs in the session any more, within 5 s.
async fn stopped(client: &Client, session_id: &str) -> Result<bool, Error> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        if client.get(session_id, SessionView::Basic).await?.running_completion_id.is_empty() {
            return Ok(true);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(false)
}

async fn say(client: &Client, request: CompleteRequest) {
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

/// The code of what ends the answer, and none of its texts.
async fn print_codes(mut answer: Completion, after: &str) {
    match answer.text().await {
        Ok(text) => println!("text [{text}]"),
        Err(error) => println!("error {}{after}", name(error.code)),
    }
}

fn print_session(session: &Session) {
    let (messages, exchanges) = (session.message_count, session.exchange_count);
    println!("session {} messages={messages} exchanges={exchanges}", session.id);
}

fn print_error(error: &Error) {
    let reason = if error.reason.is_empty() { "-" } else { &error.reason };
    let retry = error.retry_after.map(|after| format!(" retry={}ms", after.as_millis()));
    println!("error {} {reason}{}", name(error.code), retry.unwrap_or_default());
    for violation in &error.violations {
        println!("violation {}: {}", violation.field, violation.description);
    }
}

fn reason(finished: &Finished) -> &'static str {
    finished.finish_reason().as_str_name().trim_start_matches("FINISH_REASON_")
}

/// gRPC's name of a code, `NotFound` as `NOT_FOUND`.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
