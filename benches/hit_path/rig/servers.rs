//! The gateway and nginx with their settings for the benchmark, and requests outside of turns.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::options::Options;
use super::part::Failure;
use super::process::{Placement, Process, SERVER};
use super::queries::Request;

/// A server that is measured.
#[derive(Debug)]
pub struct Server {
    /// The name of its row.
    pub name: &'static str,
    /// Its port on this machine.
    pub port: u16,
    /// Whether it answers from a cache.
    pub caches: bool,
    process: Process,
    log: Option<File>,
}

impl Server {
    /// A server without a cache.
    pub fn bare((process, port): (Process, u16)) -> Self {
        Self { name: "bare", port, caches: false, process, log: None }
    }

    /// The gateway with its usual settings, without teams, on one processor.
    pub fn gateway(
        options: &Options,
        placement: Placement,
        folder: &Path,
        upstream: u16,
        capacity: &str,
        access_log: bool,
    ) -> Result<Self, Failure> {
        let name = if access_log { "gateway+log" } else { "gateway" };
        let command = placement.command(SERVER, &options.gateway);
        let settings = [format!("cache.capacity={capacity}"), format!("log.access={access_log}")];
        Self::gateway_by(command, name, folder, upstream, &settings)
    }

    /// A gateway that `command` starts, with more settings. The log file has its name.
    pub fn gateway_by(
        mut command: Command,
        name: &'static str,
        folder: &Path,
        upstream: u16,
        settings: &[String],
    ) -> Result<Self, Failure> {
        let path = folder.join(name).with_extension("log");
        // Appending, so that it can be emptied between turns.
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("INSIGHTS_GATEWAY_") || text.starts_with("TWILIO_") {
                command.env_remove(&variable);
            }
        }
        command
            .env("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000000")
            // As long as Twilio's: responses are searched for it, which costs more the shorter it is.
            .env("TWILIO_AUTH_TOKEN", "not-a-secret-but-as-long-as-one-")
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--upstream", &format!("http://127.0.0.1:{upstream}")])
            // The upstream's rate is not measured.
            .args(["--set", "accounts.default.rate=0/s", "--set", "accounts.default.concurrency=1000"])
            .args(["--set", "cache.query.fresh=1h", "--set", "log.format=json"])
            .args(settings.iter().flat_map(|setting| ["--set", setting]));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone()?).spawn()?;
        let mut process = Process::new(child);
        let port = patiently(|| {
            let text = std::fs::read_to_string(&path)?;
            if process.has_ended() {
                return Err(format!("the gateway does not start: {text}").into());
            }
            Ok(text.lines().find_map(listening_port))
        })?;
        let port = port.ok_or("the gateway does not say where it listens")?;
        Ok(Self { name, port, caches: true, process, log: Some(log) })
    }

    /// nginx with a cache keyed by the request's body; `None` where there is no nginx.
    pub fn nginx(placement: Placement, folder: &Path, upstream: u16, capacity: &str) -> Result<Option<Self>, Failure> {
        let silent = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !silent(Command::new("nginx").arg("-v")).is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        // It was free a moment ago; nginx does not accept port 0.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let settings = folder.join("nginx.conf");
        std::fs::write(&settings, nginx_settings(folder, port, upstream, capacity))?;
        let mut command = placement.command(SERVER, Path::new("nginx"));
        command.arg("-p").arg(folder).arg("-c").arg(&settings).arg("-e").arg(folder.join("nginx-errors.log"));
        let mut process = Process::new(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let opened = patiently(|| {
            if process.has_ended() {
                return Err("nginx does not start".into());
            }
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
        })?;
        opened.ok_or("nginx does not open its port")?;
        Ok(Some(Self { name: "nginx", port, caches: true, process, log: None }))
    }

    /// Asks it to end, and waits until it has.
    pub fn end(self) -> Result<(), Failure> {
        self.process.end()
    }

    /// Processor time so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64, Failure> {
        self.process.cpu_seconds()
    }

    /// Empties the log, so that a long run does not fill the disk. Returns how large it was.
    pub fn empty_log(&self) -> Result<u64, Failure> {
        let Some(log) = &self.log else { return Ok(0) };
        let length = log.metadata()?.len();
        log.set_len(0)?;
        Ok(length)
    }
}

/// A folder in memory, if there is one, because the disk is not measured.
pub fn folder() -> Result<tempfile::TempDir, Failure> {
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new().prefix("hit_path-").to_owned();
    let in_memory = memory.is_dir().then(|| builder().tempdir_in(memory).ok()).flatten();
    Ok(in_memory.map_or_else(|| builder().tempdir(), Ok)?)
}

/// The port in the line that the gateway logs when it serves.
fn listening_port(line: &str) -> Option<u16> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("data")?.as_str()?.rsplit_once(':')?.1.parse().ok()
}

/// The best settings for nginx here: all in memory, no log, and responses copied rather than sent as files, which costs
/// less where the files are in memory.
fn nginx_settings(folder: &Path, port: u16, upstream: u16, capacity: &str) -> String {
    let folder = folder.display();
    // If root starts nginx, it drops that user, and could not write into the folder.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    format!(
        r#"
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; multi_accept on; }}
http {{
    access_log off;
    default_type application/json;
    sendfile off;
    output_buffers 2 512k;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    open_file_cache max=20000 inactive=1h;
    open_file_cache_valid 1h;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/unused1;
    uwsgi_temp_path {folder}/unused2;
    scgi_temp_path {folder}/unused3;
    # A body that does not fit into one buffer would be missing from the key.
    client_body_buffer_size 64k;
    client_body_in_single_buffer on;
    upstream twilio {{
        server 127.0.0.1:{upstream};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=pages:64m max_size={capacity} inactive=1h use_temp_path=off;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://twilio;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Basic bm9ib2R5Om5vdC1hLXNlY3JldA==";
            proxy_buffer_size 32k;
            proxy_buffers 16 32k;
            proxy_busy_buffers_size 64k;
            proxy_cache pages;
            proxy_cache_methods POST;
            proxy_cache_key $request_method$uri$request_body;
            proxy_cache_valid 200 1h;
            proxy_cache_lock on;
        }}
    }}
}}
"#
    )
}

/// Tries until there is a result, or for thirty seconds: callgrind is slow.
fn patiently<T>(mut attempt: impl FnMut() -> Result<Option<T>, Failure>) -> Result<Option<T>, Failure> {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if let Some(found) = attempt()? {
            return Ok(Some(found));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

/// The number of queries that the upstream has received.
pub fn calls(upstream: u16) -> Result<u64, Failure> {
    let answer = exchange(upstream, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("the upstream does not answer")?;
    Ok(body.trim().parse()?)
}

/// The head of the response of `port` to query `number`.
pub fn head(port: u16, number: u64) -> Result<String, Failure> {
    let mut request = Request::new(port, None);
    let request =
        String::from_utf8_lossy(request.numbered(number)).replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    let answer = exchange(port, request.as_bytes())?;
    let (head, _) = answer.split_once("\r\n\r\n").ok_or("a server closed before its answer's head ended")?;
    Ok(head.to_owned())
}

fn exchange(port: u16, request: &[u8]) -> Result<String, Failure> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
