//! A server for tests, whose responses a function writes.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::BoxStream;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, http};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Request, Response, Status};
use tower_service::Service;

use crate::Client;

/// The responses of a call, encoded. A call that is no stream has one.
pub(crate) type Responses = BoxStream<'static, Result<Vec<u8>, Status>>;
type Script = dyn Fn(Call) -> Responses + Send + Sync;

/// A call as the server receives it.
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) metadata: MetadataMap,
    pub(crate) message: Vec<u8>,
}

impl Call {
    pub(crate) fn request<Q: Message + Default>(&self) -> Q {
        Q::decode(self.message.as_slice()).expect("the request's type")
    }
}

/// A server on a free port of loopback and on a runtime of its own. It ends when it is dropped.
pub(crate) struct ScriptedDaemon {
    pub(crate) address: String,
    runtime: Option<Runtime>,
}

impl ScriptedDaemon {
    pub(crate) fn start(script: impl Fn(Call) -> Responses + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = ScriptedService { script: Arc::new(script) };
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener);
            Server::builder().serve_with_incoming(service, incoming).await.unwrap();
        });
        Self { address, runtime: Some(runtime) }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.address).unwrap()
    }
}

impl Drop for ScriptedDaemon {
    fn drop(&mut self) {
        // Other ways to end a runtime block, which is not allowed in a test that runs on one.
        self.runtime.take().unwrap().shutdown_background();
    }
}

#[derive(Clone)]
struct ScriptedService {
    script: Arc<Script>,
}

impl Service<http::Request<Body>> for ScriptedService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let script = self.script.clone();
        Box::pin(async move {
            let (_, method) = request.uri().path().rsplit_once('/').unwrap_or_default();
            let handler = Handler { script, method: method.to_owned() };
            Ok(Grpc::new(Encoded).server_streaming(handler, request).await)
        })
    }
}

struct Handler {
    script: Arc<Script>,
    method: String,
}

impl ServerStreamingService<Vec<u8>> for Handler {
    type Response = Vec<u8>;
    type ResponseStream = Responses;
    type Future = BoxFuture<Response<Responses>, Status>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let (metadata, _, message) = request.into_parts();
        let responses = (self.script)(Call { method: self.method.clone(), metadata, message });
        Box::pin(async move { Ok(Response::new(responses)) })
    }
}

/// Messages that are already encoded, so that one handler serves all methods.
#[derive(Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
