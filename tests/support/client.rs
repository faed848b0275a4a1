//! A client that sends exactly the bytes that it is given, and checks responses strictly.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value as Json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::requests::METADATA;
use super::wait::within;

/// One connection.
pub struct Client<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

/// One response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub version: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within(TcpStream::connect(address)).await.expect("the gateway accepts connections");
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl Client<UnixStream> {
    pub async fn connect_unix(path: &Path) -> Self {
        Self::over(within(UnixStream::connect(path)).await.expect("the gateway accepts connections"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends all of `bytes`. If the gateway has closed meanwhile, that is not an error.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = within(self.stream.write_all(bytes)).await;
    }

    /// Sends a request and reads its response.
    pub async fn ask(&mut self, request: &[u8]) -> Answer {
        self.try_ask(request).await.expect("an answer")
    }

    /// The same; `None` when the connection ends without a response. It sends and reads at the same time, like every
    /// client that notices an early refusal.
    pub async fn try_ask(&mut self, request: &[u8]) -> Option<Answer> {
        let head = request.starts_with(b"HEAD ");
        let Self { stream, buffer } = self;
        within(async {
            let (mut reading, mut writing) = tokio::io::split(stream);
            let sending = async {
                // The gateway's early response may have broken the connection, but that response can still be read.
                let _ = writing.write_all(request).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                answer = read_final(&mut reading, buffer, head) => answer,
                () = sending => None,
            }
        })
        .await
    }

    /// Reads the next response, interim or final.
    pub async fn next(&mut self) -> Option<Answer> {
        within(read(&mut self.stream, &mut self.buffer, false)).await
    }

    /// Reads the next response that is not interim.
    pub async fn answer(&mut self) -> Answer {
        within(read_final(&mut self.stream, &mut self.buffer, false)).await.expect("an answer")
    }

    /// Waits until the gateway closes the connection, and returns what it still sent.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        // A reset ends a connection like a close.
        let _ = within(self.stream.read_to_end(&mut rest)).await;
        rest
    }
}

async fn read_final(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, to_head: bool) -> Option<Answer> {
    loop {
        match read(stream, buffer, to_head).await {
            Some(answer) if (100..200).contains(&answer.status) => {}
            answer => return answer,
        }
    }
}

/// Reads more; `false` at the end.
async fn more(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> bool {
    matches!(stream.read_buf(buffer).await, Ok(1..))
}

async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, to_head: bool) -> Option<Answer> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at;
        }
        if !more(stream, buffer).await {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).expect("responses have ASCII heads");
    let mut lines = head.trim_end().split("\r\n");
    let (version, rest) = lines.next()?.split_once(' ').expect("a status line");
    let status: u16 = rest.get(..3).and_then(|code| code.parse().ok()).expect("a status");
    let headers: Vec<_> = lines
        .map(|line| line.split_once(": ").expect("a header line"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut answer = Answer { status, version: version.to_owned(), headers, body: Vec::new() };
    if to_head || status < 200 || matches!(status, 204 | 304) {
        return Some(answer);
    }
    assert_eq!(answer.find("transfer-encoding"), None, "the gateway's bodies are complete, so their length is known");
    let length: usize = answer.header("content-length").parse().expect("a length");
    while buffer.len() < length {
        if !more(stream, buffer).await {
            panic!("the response's body was cut: {} of {length} bytes", buffer.len());
        }
    }
    answer.body = buffer.drain(..length).collect();
    Some(answer)
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

impl Answer {
    /// A header that may be absent. It must not be there more than once.
    pub fn find(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} occurs twice");
        value
    }

    pub fn header(&self, name: &str) -> &str {
        self.find(name).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The word after `detail=` in `Cache-Status`: the outcome of the request.
    pub fn detail(&self) -> &str {
        let status = self.header("cache-status");
        let rest = status.split("detail=").nth(1).unwrap_or_else(|| panic!("no detail: {status}"));
        rest.split(';').next().unwrap_or_default().trim()
    }

    /// Whether `Cache-Status` has this parameter.
    pub fn has_note(&self, note: &str) -> bool {
        self.header("cache-status").split(';').any(|part| part.trim() == note)
    }

    /// The word in `params.reason` of one of the gateway's own errors.
    pub fn reason(&self) -> String {
        self.json()["params"]["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails unless this is the gateway's own error, with everything that clients rely on.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, reason: &str) {
        if let Err(fault) = refusal(self, status, reason) {
            panic!("{fault}");
        }
    }

    /// Fails unless this is a 200 with this body and this outcome.
    #[track_caller]
    pub fn assert_page(&self, body: &str, detail: &str) {
        assert_eq!((self.status, self.text().as_str(), self.detail()), (200, body, detail), "{self:?}");
    }
}

/// Checks that this is the gateway's own error with that status and reason. The error says what is wrong.
pub fn refusal(answer: &Answer, status: u16, reason: &str) -> Result<(), String> {
    if answer.status != status {
        return Err(format!("status {} instead of {status}: {:?}", answer.status, answer.text()));
    }
    let body: Json = serde_json::from_slice(&answer.body).map_err(|_| format!("not JSON: {:?}", answer.text()))?;
    let code = match status {
        401 => 20003,
        405 => 20004,
        status => 20000 + u32::from(status),
    };
    let expected = serde_json::json!({
        "code": code,
        "message": body["message"],
        "httpStatusCode": status,
        "userError": status < 500,
        "params": {"source": "gateway", "reason": reason},
    });
    let outcome = match reason {
        "only_if_cached" | "queue_full" | "overloaded" | "draining" => "refused",
        _ if status < 500 => "refused",
        _ => "failed",
    };
    let checks = [
        (body == expected, format!("the body is {body} instead of {expected}")),
        (body["message"].as_str().is_some_and(|text| text.len() > 5), "there is no message".to_owned()),
        (answer.find("content-type") == Some("application/json"), "the Content-Type is not JSON's".to_owned()),
        (answer.find("x-request-id").is_some_and(|id| !id.is_empty()), "there is no X-Request-Id".to_owned()),
        (
            answer.find("cache-status") == Some(&format!("insights-gateway; detail={outcome}")),
            format!("Cache-Status is {:?}", answer.find("cache-status")),
        ),
        (status != 405 || answer.find("allow").is_some(), "there is no Allow".to_owned()),
        (
            !matches!(status, 429 | 503)
                || answer.find("retry-after").is_some_and(|wait| wait.parse::<u32>().is_ok_and(|wait| wait > 0)),
            format!("Retry-After is {:?}", answer.find("retry-after")),
        ),
    ];
    checks.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, fault)| Err(fault))
}

/// The status of a GET over HTTP/2 by prior knowledge.
pub async fn http2_status(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> u16 {
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = within(handshake).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::get(format!("http://localhost{}", METADATA)).body(Empty::<Bytes>::new()).unwrap();
    let answer = within(sender.send_request(request)).await.expect("an answer");
    let status = answer.status().as_u16();
    within(answer.into_body().collect()).await.unwrap();
    status
}
