//! An example of a chat with server-sent events: `PORT=8080 cargo run --example sse`, then
//! `curl -N 'http://127.0.0.1:8080/chat?session=ada&message=Hello'`.

use std::{collections::HashMap, env, error::Error, net::Ipv4Addr};

use axum::extract::{Query, State};
use axum::response::sse::{Event, Sse};
use axum::{Router, routing::get};
use futures_util::stream::{Stream, StreamExt, unfold};
use ruvd_client::{Client, CompleteRequest};
use serde_json::json;
use tokio::net::TcpListener;

/// Streams an answer. After the page was left, axum drops the stream, which cancels the completion.
async fn chat(
    State(client): State<Client>,
    Query(mut query): Query<HashMap<String, String>>,
) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let mut take = |name| query.remove(name).unwrap_or_default();
    let request = CompleteRequest::from(take("message")).in_session(take("session"));
    Sse::new(unfold(Some(client.complete(request)), |answer| async {
        let mut answer = answer?;
        Some(match answer.next().await {
            Some(Ok(text)) => (Event::default().json_data(text), Some(answer)),
            Some(Err(error)) => {
                let data = json!({"reason": error.reason, "message": error.message});
                (Event::default().event("error").json_data(data), None)
            }
            None => (Event::default().event("done").json_data(json!({})), None),
        })
    }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = env::var("PORT")?.parse()?;
    let app = Router::new().route("/chat", get(chat)).with_state(Client::from_env()?);
    Ok(axum::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?, app).await?)
}
