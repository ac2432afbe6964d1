//! The program `calls`: every call of the service, with every field that a caller can set.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use ruvd_client::v1::batch_complete_response::Event;
use ruvd_client::v1::tool_choice::Choice;
use ruvd_client::{Client, Completion};

use crate::calls_output::{message, optional, print_answer, print_messages, seconds, word};
use crate::*;

const SCHEMA: &str = r#"{"type": "object", "properties": {"name": {"type": "string"}}}"#;

pub(crate) async fn run(client: &Client) -> Outcome {
    calls_sessions::run(client).await?;
    complete(client).await;
    tools(client).await?;
    formats(client).await;
    resume(client).await;
    cancel(client).await?;
    batch(client).await?;
    calls_sessions::end(client).await?;
    server(client).await?;
    metrics(client).await?;
    println!("health {}", word(connect("RUVD_NOBODY")?.health().await?));
    Ok(())
}

async fn complete(client: &Client) {
    println!("# complete");
    let mut answer = client.complete(session_request("four five six", "alpha"));
    print_answer(&mut answer).await;
    let started = answer.started().cloned().unwrap_or_default();
    println!(
        "started created={} trimmed={} summarized={}",
        word(started.session_created),
        word(started.context_trimmed),
        word(started.context_summarized),
    );
    println!(
        "started session={} model={} sent={}",
        started.session_id, started.model, started.context_messages
    );
    let top_k = Value { kind: Some(Kind::NumberValue(40.0)) };
    let options = CompletionOptions {
        model: "echo".into(),
        temperature: Some(0.5),
        top_p: Some(0.9),
        max_tokens: Some(2),
        stop: vec!["never".into()],
        seed: Some(7),
        bypass_cache: true,
        frequency_penalty: Some(0.5),
        presence_penalty: Some(-0.5),
        logit_bias: HashMap::from([(5, -1.0)]),
        extra_body: Some(Struct { fields: [("top_k".to_owned(), top_k)].into() }),
        ..Default::default()
    };
    let with_options =
        CompleteRequest { options: Some(options), ..CompleteRequest::from("one two three") };
    let new = CompleteRequest {
        system_prompt: "New.".into(),
        disconnect_grace: Some(seconds(1)),
        ..session_request("seven", "gamma").recreate_if_gone()
    };
    let other =
        CompleteRequest { system_prompt: "Other.".into(), ..session_request("eight", "gamma") };
    let existing = CompleteRequest { require_existing: true, ..session_request("nine", "nobody") };
    for request in [with_options, new, other, existing] {
        print_answer(&mut client.complete(request)).await;
    }
}

async fn tools(client: &Client) -> Outcome {
    println!("# tools");
    let weather = Tool {
        name: "weather".into(),
        description: "The weather.".into(),
        parameters: r#"{"type": "object"}"#.into(),
        strict: Some(false),
    };
    let request = |messages, choice| {
        let options = CompletionOptions {
            tools: vec![weather.clone()],
            tool_choice: choice,
            parallel_tool_calls: Some(false),
            ..Default::default()
        };
        let request = CompleteRequest { messages, options: Some(options), ..Default::default() };
        request.in_session("delta")
    };
    let function = ToolChoice { choice: Some(Choice::Function("weather".into())) };
    let question = vec![message(Role::User, "in Oslo")];
    let mut answer = client.complete(request(question, Some(function)));
    print_answer(&mut answer).await;
    let called = answer.finished().and_then(|end| end.message.clone()).unwrap_or_default();
    let result = |call| Message::tool_result(call, "12 degrees");
    let results = called.tool_calls.iter().map(result).collect();
    print_answer(&mut client.complete(request(results, None))).await;
    let none = ToolChoice { choice: Some(Choice::Mode(ToolChoiceMode::None.into())) };
    let question = vec![message(Role::User, "weather")];
    print_answer(&mut client.complete(request(question, Some(none)))).await;
    print_messages(client, "delta").await
}

async fn formats(client: &Client) {
    println!("# formats");
    let object = ResponseFormat { json_object: true, ..Default::default() };
    let person = ResponseFormat {
        json_schema: SCHEMA.into(),
        name: "person".into(),
        strict: Some(true),
        ..Default::default()
    };
    for format in [object, person] {
        let options = CompletionOptions { response_format: Some(format), ..Default::default() };
        let request = CompleteRequest { options: Some(options), ..CompleteRequest::from("ada") };
        print_answer(&mut client.complete(request)).await;
    }
}

async fn resume(client: &Client) {
    println!("# resume");
    let request_id = "resume-1".to_owned();
    let mut answer = client.complete(CompleteRequest {
        request_id: request_id.clone(),
        ..session_request("one two three", "epsilon")
    });
    print_answer(&mut answer).await;
    let by_id = |id: &str, after_sequence| ResumeCompletionRequest {
        completion_id: id.into(),
        after_sequence,
        ..Default::default()
    };
    let id = id_of(&answer);
    let session_id = "epsilon".into();
    for request in [
        by_id(&id, 0),
        ResumeCompletionRequest { session_id, request_id, ..Default::default() },
        by_id(&id, answer.last_sequence() - 1),
        by_id("nobody", 0),
    ] {
        print_answer(&mut client.resume(request)).await;
    }
}

async fn cancel(client: &Client) -> Outcome {
    println!("# cancel");
    let text = words(2000);
    let request = session_request(text.clone(), "zeta");
    let mut answer =
        client.complete(CompleteRequest { request_id: "cancel-1".into(), ..request.clone() });
    answer.try_next().await?;
    let kept = CancelCompletionRequest {
        session_id: "zeta".into(),
        request_id: "cancel-1".into(),
        keep_partial: true,
        ..Default::default()
    };
    client.cancel(kept).await?;
    let content = answer.text().await?;
    if let Some(finished) = answer.finished() {
        println!("finished {} exchanges={}", reason(finished), finished.exchange_count);
    }
    println!("partial {}", word(!content.is_empty() && content.len() < text.len()));

    let by_id =
        |id: &str| CancelCompletionRequest { completion_id: id.into(), ..Default::default() };
    let mut answer = client.complete(request);
    answer.try_next().await?;
    let id = id_of(&answer);
    client.cancel(by_id(&id)).await?;
    print_error(&answer.text().await.unwrap_err());
    client.cancel(by_id(&id)).await?;
    println!("cancelled");
    print_session(&client.get("zeta", SessionView::Basic).await?);
    print_error(&client.cancel(by_id("nobody")).await.unwrap_err());
    Ok(())
}

async fn batch(client: &Client) -> Outcome {
    println!("# batch");
    let options = CompletionOptions { temperature: Some(3.0), ..Default::default() };
    let items = vec![
        "a".into(),
        "!fault ENGINE_REJECTED".into(),
        session_request("b", "eta"),
        session_request("c", "eta"),
        CompleteRequest { options: Some(options), ..CompleteRequest::from("too hot") },
    ];
    let (results, summary) = outcomes(client, items).await?;
    for (index, outcome) in &results {
        print_item(*index, outcome.as_ref());
    }
    print_summary(&summary);
    print_session(&client.get("eta", SessionView::Basic).await?);

    let large = CompleteRequest::from("x".repeat(1_000_000));
    let (results, summary) = outcomes(client, vec![large; 5]).await?;
    for (index, outcome) in &results {
        println!("item {index} bytes={}", output::content(outcome.as_ref()).len());
    }
    print_summary(&summary);
    let wrong = BatchCompleteRequest { items: vec!["a".into()], max_concurrency: -1 };
    print_error(&client.batch(wrong).try_next().await.unwrap_err());
    Ok(())
}

type Results = BTreeMap<i32, Option<batch_result::Outcome>>;

/// Returns the outcomes of a batch in the order of its items.
async fn outcomes(
    client: &Client,
    items: Vec<CompleteRequest>,
) -> Result<(Results, BatchSummary), Error> {
    let mut batch = client.batch(BatchCompleteRequest { items, max_concurrency: 2 });
    let mut results = BTreeMap::new();
    let mut summary = BatchSummary::default();
    while let Some(event) = batch.try_next().await? {
        match event {
            Event::Result(result) => drop(results.insert(result.index, result.outcome)),
            Event::Summary(totals) => summary = totals,
            _ => {}
        }
    }
    Ok((results, summary))
}

fn print_summary(summary: &BatchSummary) {
    let usage = summary.usage.unwrap_or_default();
    println!(
        "summary succeeded={} failed={} prompt={} answer={}",
        summary.succeeded, summary.failed, usage.prompt_tokens, usage.completion_tokens
    );
}

async fn server(client: &Client) -> Outcome {
    println!("# server");
    let models = client.models().await?;
    println!("models {} default={}", models.models.join(" "), models.default_model);
    let info = client.server_info().await?;
    let (version, instance) = (!info.version.is_empty(), !info.instance_id.is_empty());
    println!("info version={} instance={}", word(version), word(instance));
    for feature in ["batch", "compaction", "resume", "sessions", "structured_output", "tools"] {
        println!("feature {feature} {}", word(info.features.iter().any(|it| it == feature)));
    }
    let limits = info.limits.unwrap_or_default();
    println!("limit max_request_bytes {}", limits.max_request_bytes);
    println!("limit max_message_bytes {}", limits.max_message_bytes);
    println!("limit max_messages {}", limits.max_messages);
    println!("limit max_session_bytes {}", limits.max_session_bytes);
    println!("limit max_sessions {}", limits.max_sessions);
    println!("limit max_inflight {}", limits.max_inflight);
    println!("limit max_batch_items {}", limits.max_batch_items);
    println!("limit max_answer_bytes {}", limits.max_answer_bytes);
    println!("limit max_output_tokens {}", optional(limits.max_output_tokens));
    println!("limit idle_timeout {}s", limits.idle_timeout.unwrap_or_default().seconds);
    let retention = limits.completion_retention.unwrap_or_default();
    println!("limit completion_retention {}s", retention.seconds);
    for engine in info.engines {
        println!(
            "engine {} ready={} default={} models={} tokens={} slots={}",
            engine.name,
            word(engine.ready),
            engine.default_model,
            engine.models.join(" "),
            optional(engine.window_tokens),
            optional(engine.slots),
        );
    }
    println!("health {}", word(client.health().await?));
    Ok(())
}

async fn metrics(client: &Client) -> Outcome {
    println!("# metrics");
    let metrics = client.metrics().await?;
    println!("sessions total={} active={}", metrics.total_sessions, metrics.active_sessions);
    println!(
        "completions {} stateless={}",
        metrics.session_completions, metrics.stateless_completions
    );
    println!("messages average={:.2}", metrics.avg_messages_per_session);
    println!("measured cache_hit_rate {}", word(metrics.cache_hit_rate.is_some()));
    println!("measured avg_session_latency {}", word(metrics.avg_session_latency.is_some()));
    println!("measured avg_stateless_latency {}", word(metrics.avg_stateless_latency.is_some()));
    println!("measured avg_latency_reduction {}", word(metrics.avg_latency_reduction.is_some()));
    println!("measured avg_prefill_reduction {}", word(metrics.avg_prefill_reduction.is_some()));
    Ok(())
}

fn id_of(answer: &Completion) -> String {
    answer.started().map(|started| started.completion_id.clone()).unwrap_or_default()
}
