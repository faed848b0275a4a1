//! Plants secrets, and searches for them in all output of the process at the most verbose log level.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::gateway::SID;
use crate::support::process::Process;
use crate::support::*;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use insights_gateway::config::{self, Sources};
use tempfile::TempDir;

/// The planted secrets. Each begins with its own name, followed by characters that some formats encode.
const FILED: &str = "canaryFiledSecret/+?=1";
const ROTATED: &str = "canaryRotatedSecret/+?=2";
const IN_ENVIRONMENT: &str = "canaryEnvironmentSecret/+?=3";
const LITERAL: &str = "canaryLiteralSecret/+?=4";
const TEAM_TOKEN: &str = "canaryTeamToken";
const WRONG_TOKEN: &str = "canaryWrongToken";
const ADMIN_TOKEN: &str = "canaryAdminToken";
const WRONG_ADMIN_TOKEN: &str = "canaryWrongAdminToken";
const CLIENTS_OWN: &str = "canaryClientsOwnSecret/+?=5";
const COOKIE: &str = "canaryCookieValue";
const ALL: [&str; 10] = [
    FILED,
    ROTATED,
    IN_ENVIRONMENT,
    LITERAL,
    TEAM_TOKEN,
    WRONG_TOKEN,
    ADMIN_TOKEN,
    WRONG_ADMIN_TOKEN,
    CLIENTS_OWN,
    COOKIE,
];
/// Every form in which a secret may appear: its name as it is, in Base64 at any offset, and each of these
/// percent-encoded, or as a list of numbers, which is how Debug prints bytes.
fn forms(secret: &str) -> Vec<String> {
    let name = secret.split('/').next().unwrap();
    let mut plain = vec![name.to_owned()];
    for before in 0..3 {
        let coded = BASE64_STANDARD_NO_PAD.encode([&vec![0; before], name.as_bytes()].concat());
        // Only the part that depends on nothing but the name.
        let coded = &coded[(before * 8).div_ceil(6)..(before + name.len()) * 8 / 6];
        plain.push(coded.to_owned());
        plain.push(coded.replace('+', "-").replace('/', "_"));
    }
    plain.dedup();
    let written =
        |form: &String, write: fn(u8) -> String, between| form.bytes().map(write).collect::<Vec<_>>().join(between);
    let mut all = plain.clone();
    for form in plain {
        all.push(written(&form, |byte| format!("%{byte:02X}"), ""));
        all.push(written(&form, |byte| format!("%{byte:02x}"), ""));
        all.push(written(&form, |byte| byte.to_string(), ", "));
    }
    all
}

/// The collected output, by its source.
#[derive(Default)]
struct Catch(Vec<(String, Vec<u8>)>);

impl Catch {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    fn add_answer(&mut self, place: &str, answer: &Answer) {
        let headers: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        self.add(format!("{place}: headers"), headers);
        self.add(format!("{place}: body"), answer.body.clone());
    }

    fn add_folder(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => self.add_folder(&path),
                false => self.add(path.display().to_string(), fs::read(&path).unwrap()),
            }
        }
    }

    /// The secrets that are in the output.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for form in ALL.iter().flat_map(|secret| forms(secret)) {
            let finder = memchr::memmem::Finder::new(&form);
            for (place, bytes) in &self.0 {
                if let Some(at) = finder.find(bytes) {
                    let around = &bytes[at.saturating_sub(100)..bytes.len().min(at + 100)];
                    leaks.push(format!("{place}: {form}: …{}…", String::from_utf8_lossy(around)));
                }
            }
        }
        leaks
    }
}

#[test]
fn the_search_finds_planted_secrets() {
    let percent = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    for secret in ALL {
        for user in ["a", "ab", "abc", "SKfiled", ""] {
            let pair = format!("{user}:{secret}");
            let (basic, url_safe) = (BASE64_STANDARD.encode(&pair), BASE64_URL_SAFE_NO_PAD.encode(&pair));
            let debug = format!("{:?}", pair.as_bytes());
            for shown in [percent(&pair), percent(&basic), pair, basic, url_safe, debug] {
                let mut catch = Catch::default();
                catch.add("here", format!("some text {shown} and more"));
                assert!(!catch.leaks().is_empty(), "{shown}");
            }
        }
    }
    let mut catch = Catch::default();
    catch.add("here", "canary Filed canaryFiled canaryTeam");
    assert!(catch.leaks().is_empty());
}

/// A configuration with secrets of every kind, and the folder where its parts are.
struct Planted {
    folder: TempDir,
}

impl Planted {
    fn new(upstream: &str) -> Self {
        let planted = Self { folder: TempDir::new().unwrap() };
        planted.write("secret", FILED);
        planted.write("gateway.toml", &planted.text(upstream));
        planted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    fn text(&self, upstream: &str) -> String {
        let hash = sha256_hex;
        let folder = self.folder.path().display();
        let mut text = format!(
            "[server]\nlisten = ['127.0.0.1:0']\n\
             [admin]\nlisten = '127.0.0.1:0'\ntoken_sha256 = '{admin}'\nshow_queries = true\n\
             [upstream]\nurl = '{upstream}'\nattempt_timeout = '2s'\n\
             [cache]\ndisk.path = '{folder}/pages'\n\
             [retry]\nbase = '1ms'\nmax = '2ms'\nbudget = 10\n\
             [circuit]\nconsecutive = 1000\nratio = 1.0\n\
             [log]\nfilter = 'trace'\nformat = 'json'\naudit = '{folder}/audit.jsonl'\n\
             [accounts.filed]\napi_key = 'SKfiled'\napi_secret = {{ file = '{folder}/secret' }}\n\
             [accounts.environment]\napi_key = 'SKenvironment'\napi_secret = {{ env = 'CANARY' }}\n\
             [accounts.literal]\nauth_token = '{LITERAL}'\n",
            admin = hash(ADMIN_TOKEN)
        );
        for account in ["filed", "environment", "literal"] {
            text = text.replace(
                &format!("[accounts.{account}]\n"),
                &format!("[accounts.{account}]\naccount_sid = '{SID}'\nrate = '0/s'\n"),
            );
            let token = hash(&format!("{TEAM_TOKEN}-{account}"));
            text += &format!("[teams.{account}]\naccount = '{account}'\ntoken_sha256 = '{token}'\n");
        }
        text
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
        command.arg(verb).arg("--config").arg(self.path("gateway.toml"));
        command.env_clear().env("CANARY", IN_ENVIRONMENT).stdin(std::process::Stdio::null());
        command
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\nCookie: session={COOKIE}\r\n")
}

fn basic(user: &str, secret: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{user}:{secret}")))
}

/// An upstream that repeats what it was sent, in a different way on each page.
fn echo(seen: &Seen) -> Plan {
    let sent = seen.header("authorization").unwrap_or_default().to_owned();
    let basic = sent.trim_start_matches("Basic ").to_owned();
    let pair = String::from_utf8(BASE64_STANDARD.decode(&basic).unwrap()).unwrap();
    let secret = pair.split_once(':').unwrap().1;
    let json = format!(r#"{{"message":"{sent} is {pair}"}}"#);
    let page = seen.target().rsplit_once('=').map_or("", |(_, page)| page);
    match page {
        "body" => Plan::page(&json),
        "header" => Plan::with(200, &format!("Twilio-Request-Id: {secret}\r\nX-Debug: {sent}\r\n"), PAGE),
        "redirect" => Plan::with(302, &format!("Location: http://127.0.0.1:9/{basic}?{pair}\r\n"), ""),
        "rejected" => Plan::with(401, &format!("WWW-Authenticate: Basic realm=\"{pair}\"\r\n"), &json),
        "error" => Plan::json(400, &json),
        "failure" => Plan::with(500, "Content-Type: text/html\r\n", &format!("<html>{json}</html>")),
        "limited" => Plan::with(429, &format!("X-RateLimit-Limit: {secret}\r\n"), &json),
        "garbage" => Plan::raw(format!("{sent} {pair}\r\n\r\n")).then_close(),
        "malformed" => Plan::raw(format!("HTTP/1.1 200 OK\r\n{sent}\r\n: {pair}\r\n\r\n{json}")).then_close(),
        "cut" => Plan::raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{json}")).then_close(),
        "chunks" => Plan::raw(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{sent}\r\n")).then_close(),
        "reset" => Plan::reset(),
        _ => Plan::page(PAGE),
    }
}

const PAGES: [&str; 13] = [
    "good",
    "body",
    "header",
    "redirect",
    "rejected",
    "error",
    "failure",
    "limited",
    "garbage",
    "malformed",
    "cut",
    "chunks",
    "reset",
];

async fn ask_over_http_2(process: &Process, authorization: &str, catch: &mut Catch) {
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(process.data).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io);
    let (mut sender, connection) = within(handshake).await.unwrap();
    tokio::spawn(connection);
    for (name, value) in [("authorization", authorization), ("x-no-name", "two\tparts")] {
        let request = http::Request::get(format!("http://localhost{METADATA}"))
            .header("authorization", authorization)
            .header(name, value)
            .body(Full::<Bytes>::default());
        let answer = within(sender.send_request(request.unwrap())).await.unwrap();
        catch.add("an answer over HTTP/2: headers", format!("{:?}", answer.headers()));
        catch.add("an answer over HTTP/2: body", answer.into_body().collect().await.unwrap().to_bytes().to_vec());
    }
}

#[tokio::test]
async fn no_secret_leaves_the_process_in_any_form() {
    let upstream = Upstream::script(echo).await;
    let planted = Planted::new(&upstream.url());
    let mut catch = Catch::default();
    let stdout = planted.path("stdout");
    let mut command = planted.command("serve");
    command.stdout(fs::File::create(&stdout).unwrap()).stderr(std::process::Stdio::piped());
    let process = Process::spawn(command).await;
    catch.add("the arguments", fs::read(format!("/proc/{}/cmdline", process.id())).unwrap());

    // Every account, with every kind of response.
    for account in ["filed", "environment", "literal"] {
        for page in PAGES {
            let target = format!("{METADATA}?{account}={page}");
            let answer = process.ask(&get(&target, &bearer(&format!("{TEAM_TOKEN}-{account}")))).await;
            catch.add_answer(&target, &answer);
        }
    }
    // Requests without valid tokens, and heads that hyper itself refuses.
    let strangers = [
        basic("filed", &format!("{TEAM_TOKEN}-filed")),
        bearer(WRONG_TOKEN),
        basic("filed", WRONG_TOKEN),
        basic("SKclient", CLIENTS_OWN),
        format!("Authorization: {CLIENTS_OWN}\r\n"),
        format!("{}Authorization: Bearer {WRONG_TOKEN}\r\n", bearer(WRONG_TOKEN)),
        format!("{}Content-Length: 1\r\nContent-Length: 2\r\n", bearer(WRONG_TOKEN)),
        format!("{}X-Folded: a\r\n b\r\n", bearer(WRONG_TOKEN)),
        format!("{}no colon in {CLIENTS_OWN}\r\n", bearer(WRONG_TOKEN)),
        format!("{}X-Large: {}\r\n", bearer(WRONG_TOKEN), "a".repeat(100_000)),
    ];
    let requests = strangers.iter().flat_map(|headers| [get(METADATA, headers), post_to(QUERY, headers, ASK)]);
    // All at the same time, because refusals are delayed.
    let answers = requests.map(async |request| {
        let mut client = Client::connect(process.data).await;
        client.send(&request).await;
        client.send(b"\r\n").await;
        client.next().await
    });
    for answer in futures_util::future::join_all(answers).await.into_iter().flatten() {
        catch.add_answer("an answer to a stranger", &answer);
    }
    for authorization in [format!("Bearer {TEAM_TOKEN}-filed"), format!("Bearer {WRONG_TOKEN}")] {
        ask_over_http_2(&process, &authorization, &mut catch).await;
    }

    // A rotation; and configurations that are wrong in the line of a secret.
    let admin = async |path: &str, token: &str| {
        Client::connect(process.admin).await.ask(&get(path, &format!("{}Connection: close\r\n", bearer(token)))).await
    };
    let reloads = async || {
        let page = admin("/metrics", ADMIN_TOKEN).await.text();
        let lines = page.lines().filter(|line| line.starts_with("insights_gateway_reloads_total"));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok()).sum::<u32>()
    };
    let good = planted.text(&upstream.url());
    planted.write("secret", ROTATED);
    let wrong = [
        good.clone(),
        good.replace(&format!("'{LITERAL}'"), &format!("'{LITERAL}")),
        good.replace("auth_token =", "auth_tokne ="),
        good.replace(&format!("auth_token = '{LITERAL}'"), &format!("auth_token = {{ file = '{LITERAL}' }}")),
        good.replace("capacity =", "nothing =").replace("[server]", &format!("[server]\ndrain = '{LITERAL}'")),
        good.replace("[server]", &format!("[server]\nlisten = ['{LITERAL}']\nopen = '{LITERAL}'")),
        good.replace(&format!("'{SID}'"), &format!("'{LITERAL} '")),
    ];
    for (n, text) in wrong.iter().enumerate() {
        planted.write("gateway.toml", text);
        let checked = planted.command("check").output().unwrap();
        assert_eq!(checked.status.success(), n == 0, "{}", String::from_utf8_lossy(&checked.stderr));
        catch.add(format!("check {n}: standard output"), checked.stdout);
        catch.add(format!("check {n}: standard error"), checked.stderr);
        let before = reloads().await;
        process.signal("HUP");
        poll("a reload", || async { (reloads().await > before).then_some(()) }).await;
    }
    let answer = process.ask(&get(&format!("{METADATA}?filed=body"), &bearer(&format!("{TEAM_TOKEN}-filed")))).await;
    catch.add_answer("after the rotation", &answer);
    assert!(
        upstream.seen().iter().any(|seen| seen.head.contains(&BASE64_STANDARD.encode(format!("SKfiled:{ROTATED}"))))
    );

    for path in ["/", "/livez", "/readyz", "/metrics", "/status", "/cache/entries", "/cache/purge", "/nowhere"] {
        for token in [ADMIN_TOKEN, WRONG_ADMIN_TOKEN] {
            catch.add_answer(path, &admin(path, token).await);
        }
    }
    process.signal("TERM");
    let (code, said) = process.ended().await;
    assert_eq!(code, Some(0), "{}", &said[said.len().saturating_sub(2000)..]);
    for target in ["\"level\":\"TRACE\"", "\"target\":\"hyper", "\"target\":\"h2::", "\"target\":\"insights_gateway"] {
        assert!(said.contains(target), "the log is not verbose enough for this test: no {target}");
    }
    catch.add("standard error", said);
    catch.add("standard output", fs::read(&stdout).unwrap());
    catch.add("the audit log", fs::read(planted.path("audit.jsonl")).unwrap());
    catch.add_folder(&planted.path("pages"));

    // Text that a panic's message could contain.
    let sources = Sources::default().with_file(planted.path("gateway.toml")).with_variable("CANARY", IN_ENVIRONMENT);
    planted.write("gateway.toml", &good);
    catch.add("Sources, by Debug", format!("{:#?}", sources.clone().with_flag("accounts.literal.auth_token", LITERAL)));
    catch.add("Config, by Debug", format!("{:#?}", config::load(&sources).unwrap()));

    let leaks = catch.leaks();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks[..leaks.len().min(20)].join("\n"));
}
