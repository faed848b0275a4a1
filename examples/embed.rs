//! The gateway's layers behind your own hyper server, in front of the simulator: `cargo run --example embed`.
//!
//! [`SharedState`] is made once. A [`Stack`](stack::Stack) is built from it and a configuration, and is an ordinary
//! tower service: for another configuration, build another stack around the same state. The program asks the same query
//! twice, and prints how the gateway answered.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use insights_gateway::core::peer::{Origin, Peer};
use insights_gateway::stack::{self, SharedState, Stack};
use tokio::net::TcpListener;

mod simulated;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = simulated::start().await?;
    let shared = SharedState::new(&config)?;
    let stack = stack::build(&config, &shared)?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(serve(listener, stack));

    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    for _ in 0..2 {
        let response = client.request(simulated::query(&address)?).await?;
        println!("{} {:?}", response.status(), response.headers().get("cache-status"));
        println!("{}", String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()));
    }
    Ok(())
}

/// Serves connections until the program ends.
async fn serve(listener: TcpListener, stack: Stack) {
    while let Ok((stream, address)) = listener.accept().await {
        // Each connection has a copy of the stack with its own peer.
        let service = TowerToHyperService::new(stack.clone().of(Arc::new(Peer::new(Origin::Tcp(address)))));
        tokio::spawn(async move {
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                eprintln!("{address}: {error}");
            }
        });
    }
}
