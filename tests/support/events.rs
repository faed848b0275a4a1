//! A reader of server-sent events over HTTP/1.1 with chunked coding.

use std::net::SocketAddr;

use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Answer, find};
use super::requests::get;
use super::wait::within;

/// One stream of events.
pub struct EventStream {
    stream: TcpStream,
    pub head: String,
    raw: Vec<u8>,
    text: String,
}

/// A received event or comment.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Event(String, Json),
    Comment(String),
    End,
}

impl EventStream {
    /// Asks for the events with these header lines, each ended by CR LF.
    pub async fn open(admin: SocketAddr, headers: &str) -> Self {
        let mut stream = within(TcpStream::connect(admin)).await.unwrap();
        within(stream.write_all(&get("/events", headers))).await.unwrap();
        let mut events = Self { stream, head: String::new(), raw: Vec::new(), text: String::new() };
        let end = loop {
            match find(&events.raw, b"\r\n\r\n") {
                Some(end) => break end,
                None => assert!(events.more().await, "no head"),
            }
        };
        events.head = String::from_utf8(events.raw.drain(..end + 4).collect()).unwrap().to_ascii_lowercase();
        events
    }

    pub fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    /// The response without its events.
    pub fn answer(&self) -> Answer {
        let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = self.head.lines().skip(1).filter_map(field).collect();
        Answer { status: self.status(), version: "HTTP/1.1".to_owned(), headers, body: Vec::new() }
    }

    async fn more(&mut self) -> bool {
        matches!(within(self.stream.read_buf(&mut self.raw)).await, Ok(1..))
    }

    /// The next event or comment.
    pub async fn next(&mut self) -> Told {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let told: String = self.text.drain(..end + 2).collect();
                if let Some(comment) = told.strip_prefix(": ") {
                    return Told::Comment(comment.trim().to_owned());
                }
                let (name, data) = told.trim_end().split_once("\ndata: ").unwrap_or_else(|| panic!("{told:?}"));
                let name = name.strip_prefix("event: ").unwrap();
                return Told::Event(name.to_owned(), serde_json::from_str(data).unwrap());
            }
            let Some(at) = find(&self.raw, b"\r\n") else {
                if self.more().await {
                    continue;
                }
                return Told::End;
            };
            let size = std::str::from_utf8(&self.raw[..at]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.unwrap_or_else(|| panic!("no chunk: {:?}", String::from_utf8_lossy(&self.raw)));
            while self.raw.len() < at + 2 + size + 2 {
                if !self.more().await {
                    return Told::End;
                }
            }
            let chunk: Vec<u8> = self.raw.drain(..at + 2 + size + 2).collect();
            if size == 0 {
                return Told::End;
            }
            self.text.push_str(std::str::from_utf8(&chunk[at + 2..at + 2 + size]).unwrap());
        }
    }

    /// The next event of that name.
    pub async fn event(&mut self, wanted: &str) -> Json {
        within(async {
            loop {
                match self.next().await {
                    Told::Event(name, data) if name == wanted => return data,
                    Told::End => panic!("the stream ended before there was a {wanted}"),
                    _ => {}
                }
            }
        })
        .await
    }
}
