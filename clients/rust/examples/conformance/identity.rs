//! The program `identity WAY`: the calls of a client with a token and TLS.

use std::{env, io};

use futures_util::StreamExt;
use ruvd_client::v1::*;
use ruvd_client::{Client, ClientBuilder, Error, Tls};

use crate::output::name;
use crate::session_request;

/// Makes the calls of `identity WAY` for each line of standard input.
pub(crate) async fn run(way: &str) -> Result<(), Box<dyn std::error::Error>> {
    let Ok(client) = settings(way)?.build() else {
        println!("refused");
        return Ok(());
    };
    for line in io::stdin().lines() {
        calls(&client, &line?).await;
    }
    Ok(())
}

fn settings(way: &str) -> Result<ClientBuilder, Box<dyn std::error::Error>> {
    let path = env::var("TEST_TOKEN_FILE").unwrap_or_default();
    let client = Client::builder();
    let client = match way {
        "environment" => return Ok(client),
        "value" => client.token(env::var("TEST_TOKEN")?),
        "file" => client.token_file(path),
        "function" => client.token_source(move || {
            let path = path.clone();
            async move { std::fs::read_to_string(path) }
        }),
        _ => return Err("unknown way".into()),
    };
    let client = client.address(env::var("TEST_ADDRESS")?);
    let Ok(ca_file) = env::var("TEST_TLS_CA_FILE") else { return Ok(client) };
    let mut tls = Tls::new().ca_file(ca_file);
    let variables = ["TEST_TLS_CLIENT_CERT_FILE", "TEST_TLS_CLIENT_KEY_FILE"];
    let [cert, key] = variables.map(|name| env::var(name).unwrap_or_default());
    if !cert.is_empty() || !key.is_empty() {
        tls = tls.client_certificate(cert, key);
    }
    if let Ok(name) = env::var("TEST_TLS_SERVER_NAME") {
        tls = tls.server_name(name);
    }
    Ok(client.tls(tls))
}

async fn calls(client: &Client, name: &str) {
    print_result("models", client.models().await.map(|_| "ok".into()));

    let request = CompleteRequest { request_id: name.into(), ..session_request("one two", name) };
    let text = client.complete(request).text().await;
    print_result("complete", text.map(|text| format!("[{text}]")));

    let (session_id, request_id) = (name.to_owned(), name.to_owned());
    let request = ResumeCompletionRequest { session_id, request_id, ..Default::default() };
    let text = client.resume(request).text().await;
    print_result("resume", text.map(|text| format!("[{text}]")));

    let (session_id, request_id) = (name.to_owned(), name.to_owned());
    let request = CancelCompletionRequest { session_id, request_id, ..Default::default() };
    print_result("cancel", client.cancel(request).await.map(|()| "ok".into()));

    let items = vec!["three".into()];
    let mut events = client.batch(BatchCompleteRequest { items, ..Default::default() });
    while let Some(event) = events.next().await {
        match event {
            Ok(batch_complete_response::Event::Result(result)) => {
                let Some(batch_result::Outcome::Completion(answer)) = result.outcome else {
                    continue;
                };
                let message = answer.finished.and_then(|end| end.message).unwrap_or_default();
                print_result("batch", Ok(format!("[{}]", message.content)));
            }
            Ok(_) => {}
            Err(error) => print_result("batch", Err(error)),
        }
    }
}

fn print_result(call: &str, result: Result<String, Error>) {
    match result {
        Ok(text) => println!("{call} {text}"),
        Err(error) => {
            let reason = if error.reason.is_empty() { "-" } else { &error.reason };
            println!("{call} error {} {reason}", name(error.code));
        }
    }
}
