//! The binary, started as a user would start it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::Value as Json;
use tokio::sync::mpsc;

use super::client::{Answer, Client};
use super::gateway::{KEY, SECRET, SID};
use super::requests::get;
use super::wait::within;

/// The running binary, with its own environment.
pub struct Process {
    child: Running,
    pub data: SocketAddr,
    pub admin: SocketAddr,
    /// Its output on standard error so far.
    said: Vec<String>,
    stderr: mpsc::UnboundedReceiver<String>,
}

/// A child process that is killed when its test ends.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has already ended, unless its test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn command(arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.arg("serve").args(arguments).env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
    command.env("TWILIO_ACCOUNT_SID", SID).env("TWILIO_API_KEY", KEY).env("TWILIO_API_SECRET", SECRET);
    command
}

/// Flags for free ports and a readable log, before those of the test.
pub fn quiet(arguments: Vec<String>) -> Vec<String> {
    let first = [("server.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0"), ("log.format", "json")];
    first.map(|(key, value)| set(key, value)).into_iter().chain(arguments).collect()
}

pub fn set(key: &str, value: &str) -> String {
    format!("--set={key}={value}")
}

/// Waits for the next message to the service manager.
pub async fn told(manager: &tokio::net::UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = within(manager.recv(&mut buffer)).await.unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

impl Process {
    /// On free ports, with these flags.
    pub async fn start(arguments: Vec<String>) -> Self {
        Self::spawn(command(&quiet(arguments))).await
    }

    /// As this command starts it. Without a TCP listener `data` is not a usable address.
    pub async fn spawn(mut command: Command) -> Self {
        let mut child = Running(command.spawn().unwrap());
        let pipe = BufReader::new(child.0.stderr.take().unwrap());
        let (lines, stderr) = mpsc::unbounded_channel();
        // The thread ends with the process, whose end closes the pipe.
        std::thread::spawn(move || pipe.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut process = Self { child, data: nowhere, admin: nowhere, said: Vec::new(), stderr };
        let serving = process.says(|event| event["message"] == "serving").await;
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        process.data = serving["data"].as_str().unwrap().split(", ").find_map(address).unwrap_or(nowhere);
        process.admin = serving["admin"].as_str().and_then(address).unwrap();
        process
    }

    /// Waits for a line of its log that no test has waited for before.
    pub async fn says(&mut self, is_it: impl Fn(&Json) -> bool) -> Json {
        loop {
            let line = within(self.stderr.recv()).await.unwrap_or_else(|| panic!("the process ended: {:?}", self.said));
            let event = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            self.said.push(line);
            if is_it(&event) {
                return event;
            }
        }
    }

    /// All lines of its log so far.
    pub fn log(&mut self) -> Vec<Json> {
        while let Ok(line) = self.stderr.try_recv() {
            self.said.push(line);
        }
        self.said.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.0.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub async fn ask(&self, request: &[u8]) -> Answer {
        Client::connect(self.data).await.ask(request).await
    }

    pub async fn metric(&self, sample: &str) -> Option<String> {
        let page = Client::connect(self.admin).await.ask(&get("/metrics", "")).await.text();
        page.lines().find_map(|line| line.strip_prefix(sample).map(|value| value.trim().to_owned()))
    }

    /// Waits for its end. Returns the exit code and all its output.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        while let Some(line) = within(self.stderr.recv()).await {
            self.said.push(line);
        }
        (self.child.0.wait().unwrap().code(), self.said.join("\n"))
    }
}
