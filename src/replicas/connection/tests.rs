//! Stores of several servers, of which one never answers.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::super::SharedStore;
use super::super::test_server::until;
use super::*;
use crate::config::StoreUrl;
use crate::core::clock::Clock;
use crate::metrics::Metrics;

/// A host that is dark: what is sent to it is dropped.
struct Dark {
    port: u16,
    _listener: TcpListener,
    _waits: TcpStream,
}

impl Dark {
    /// A socket that listens, and on which one connection waits: no more than that fit into its queue.
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        Self { port: address.port(), _waits: TcpStream::connect(address).await.unwrap(), _listener: listener }
    }
}

/// What a server answers to a command, given by its words in upper case, in the server's protocol.
type Answers = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// A server that gives these answers, and `OK` to everything else. Returns its port.
async fn server(answers: impl Fn(u16, &str) -> Option<String> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: Answers = Arc::new(move |command| answers(port, command));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection, Arc::clone(&answers)));
        }
    });
    port
}

async fn serve(connection: TcpStream, answers: Answers) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut words = Vec::new();
        for _ in 0..number(&mut connection).await? {
            let mut word = vec![0; number(&mut connection).await? + "\r\n".len()];
            connection.read_exact(&mut word).await?;
            words.push(String::from_utf8_lossy(word.trim_ascii_end()).to_uppercase());
        }
        let answer = answers(&words.join(" ")).unwrap_or_else(|| "+OK\r\n".to_owned());
        connection.write_all(answer.as_bytes()).await?;
    }
}

/// The number in the next line, which says how many words follow, or how long the next one is.
async fn number(connection: &mut BufReader<TcpStream>) -> io::Result<usize> {
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    line.get(1..).and_then(|number| number.trim_end().parse().ok()).ok_or(io::ErrorKind::UnexpectedEof.into())
}

fn list(values: &[&str]) -> String {
    format!("*{}\r\n{}", values.len(), values.concat())
}

fn text(text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    format!("${}\r\n{text}\r\n", text.len())
}

/// What a server of the store answers that has nothing to do with other servers.
fn of_store(command: &str) -> Option<String> {
    match command {
        "ROLE" => Some(list(&[&text("master"), ":0\r\n", &list(&[])])),
        _ if command.starts_with("EVAL") => Some(list(&[":1\r\n"; 3])),
        _ => None,
    }
}

async fn is_reached(servers: Servers) {
    let settings = Shared {
        url: StoreUrl { servers, tls: false, database: 0 },
        username: None,
        password: None,
        ca_file: None,
        seal: Vec::new(),
        prefix: "test".to_owned(),
        timeout: Duration::from_millis(250),
        lease: Duration::from_secs(5),
        replicas: 2,
    };
    let store = SharedStore::start(settings, Metrics::new(), Clock::new());
    until("the store is reached", || store.is_up()).await;
}

fn hosts(ports: [u16; 2]) -> Vec<HostPort> {
    ports.map(|port| HostPort { host: "127.0.0.1".to_owned(), port }).into()
}

#[tokio::test]
async fn the_primary_is_found_although_the_first_sentinel_is_dark() {
    let (dark, primary) = (Dark::start().await, server(|_, command| of_store(command)).await);
    let sentinel = server(move |_, command| match command {
        "ROLE" => Some(list(&[&text("sentinel"), &list(&[&text("main")])])),
        "SENTINEL MASTERS" => {
            let port = primary.to_string();
            let told = ["name", "main", "ip", "127.0.0.1", "port", &port, "flags", "master"].map(text);
            Some(list(&[&list(&told.each_ref().map(String::as_str))]))
        }
        _ => None,
    });
    let hosts = hosts([dark.port, sentinel.await]);
    is_reached(Servers::Sentinel { hosts, service: "main".to_owned() }).await;
}

#[tokio::test]
async fn a_cluster_is_reached_although_a_node_is_dark() {
    let dark = Dark::start().await;
    let other = dark.port;
    // The dark node is in the list, and the other one names it too.
    let node = server(move |own, command| match command {
        "CLUSTER SLOTS" => {
            let node = |port: u16| list(&[&text("127.0.0.1"), &format!(":{port}\r\n"), &text(port)]);
            Some(list(&[&list(&[":0\r\n", ":16383\r\n", &node(own), &node(other)])]))
        }
        _ => of_store(command),
    });
    is_reached(Servers::Cluster(hosts([dark.port, node.await]))).await;
}
