//! Configuration and the small commands, tested with the binary.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use tempfile::TempDir;
use tokio::net::TcpSocket;

const SECRET: &str = "planted-s3cret-that-nobody-may-see";
const SID: &str = "AC0123456789abcdef0123456789abcdef";

/// The binary with its own environment.
fn gateway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn with_account(command: &mut Command) -> &mut Command {
    command.env("TWILIO_ACCOUNT_SID", SID).env("TWILIO_API_KEY", "SK1").env("TWILIO_API_SECRET", SECRET)
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("gateway.toml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn check_prints_what_is_in_effect_without_secrets() {
    let (code, page, errors) = run(with_account(&mut gateway(&["check"])));
    assert_eq!((code, errors.as_str()), (Some(0), "OK\n"));
    assert!(page.contains("[accounts.default]") && page.contains("max_body = \"1MiB\""), "{page}");
    assert!(page.contains("api_secret = { env = \"TWILIO_API_SECRET\" } # masked"), "{page}");
    assert!(!page.contains(SECRET));
    let document: toml::Table = page.parse().unwrap();
    assert_eq!(document["cache"]["query"]["fresh"].as_str(), Some("1m"));
}

#[test]
fn check_warns_of_a_literal_secret_without_repeating_it() {
    let (_folder, path) =
        file(&format!("[accounts.a]\naccount_sid = '{SID}'\napi_key = 'SK1'\napi_secret = '{SECRET}'\n"));
    let (code, page, errors) = run(gateway(&["check", "--config"]).arg(&path));
    assert_eq!(code, Some(0), "{errors}");
    assert!(page.contains("api_secret = \"********\""), "{page}");
    let start = format!("warning: {}:4: accounts.a.api_secret: ", path.display());
    assert!(errors.starts_with(&start) && errors.ends_with("\n0 faults, 1 warning\n"), "{errors}");
    assert!(!page.contains(SECRET) && !errors.contains(SECRET));
}

#[test]
fn check_and_serve_report_every_fault_with_line_and_suggestion() {
    let (_folder, path) = file(&format!(
        "[server]\nlistne = ['127.0.0.1:0']\n[accounts.a]\naccount_sid = '{SID}'\napi_key = 'SK1'\n\
         api_secert = '{SECRET}'\n[retry]\nattempts = 0\n"
    ));
    for subcommand in ["check", "serve"] {
        let mut command = gateway(&[subcommand]);
        command.env("INSIGHTS_GATEWAY_CONFIG", &path).env("INSIGHTS_GATEWAY_CACHE__CAPACTY", "1MiB");
        let (code, page, errors) = run(&mut command);
        assert_eq!((code, page.as_str()), (Some(64), ""));
        let lines: Vec<&str> = errors.lines().collect();
        let at = |line: usize, rest: &str| format!("{}:{line}: {rest}", path.display());
        let expected = [
            at(2, "server.listne: unknown key (did you mean listen?)"),
            at(3, "accounts.a.api_secret: missing; give either api_key and api_secret, or auth_token"),
            at(6, "accounts.a.api_secert: unknown key (did you mean api_secret?)"),
            at(8, "retry.attempts: must be a whole number from 1 to 20"),
            "environment: INSIGHTS_GATEWAY_CACHE__CAPACTY: unknown key (did you mean INSIGHTS_GATEWAY_CACHE__CAPACITY?)"
                .to_owned(),
        ];
        assert_eq!(lines[..expected.len()], expected, "{errors}");
        let last = match subcommand {
            "check" => "5 faults, 0 warnings",
            _ => "insights-gateway: 5 faults in the configuration, nothing was started",
        };
        assert_eq!(lines[expected.len()..], [last], "{errors}");
        assert!(!errors.contains(SECRET), "{errors}");
    }
}

#[test]
fn a_flag_beats_the_environment_and_that_beats_the_file() {
    let (_folder, path) = file("[cache]\ncapacity = '1MiB'\n[server]\ndrain = '1s'\nbody_timeout = '1s'\n");
    let arguments = ["check", "--set=cache.capacity=3MiB", "--listen=127.0.0.1:1", "--config"];
    let mut command = gateway(&arguments);
    command
        .arg(&path)
        .env("INSIGHTS_GATEWAY_CACHE__CAPACITY", "2MiB")
        .env("INSIGHTS_GATEWAY_SERVER__DRAIN", "2s")
        .env("INSIGHTS_GATEWAY_SERVER__LISTEN", "127.0.0.1:2");
    let (code, page, errors) = run(with_account(&mut command));
    assert_eq!(code, Some(0), "{errors}");
    for line in ["capacity = \"3MiB\"", "listen = [\"127.0.0.1:1\"]", "drain = \"2s\"", "body_timeout = \"1s\""] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[test]
fn check_prints_what_differs_from_the_defaults_and_where_it_was_set() {
    let (_folder, path) = file("[cache]\ncapacity = '1MiB'\n[server]\ndrain = '30s'\nbody_timeout = '1s'\n");
    let mut command = gateway(&["check", "--diff", "--set=retry.attempts=2", "--config"]);
    command.arg(&path).env("INSIGHTS_GATEWAY_ADMIN__SHOW_QUERIES", "true");
    let (code, page, errors) = run(with_account(&mut command));
    assert_eq!((code, errors.as_str()), (Some(0), "OK\n"));
    let path = path.display();
    for line in [
        format!("[server]\nbody_timeout = \"1s\" # from {path}:5\n"),
        "\n[admin]\nshow_queries = true # from environment: INSIGHTS_GATEWAY_ADMIN__SHOW_QUERIES\n".to_owned(),
        "\napi_secret = { env = \"TWILIO_API_SECRET\" } # masked, from environment: TWILIO_API_SECRET\n".to_owned(),
        format!("\n[cache]\ncapacity = \"1MiB\" # from {path}:2\n"),
        "\n[retry]\nattempts = 2 # from flags\n".to_owned(),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
    assert!(!page.contains("drain") && !page.contains("is not set") && !page.contains(SECRET), "{page}");
    page.parse::<toml::Table>().unwrap();
}

#[test]
fn check_without_secrets_works_where_they_are_not() {
    let text = format!(
        "[accounts.a]\naccount_sid = '{SID}'\napi_key = {{ env = 'NOT_HERE' }}\n\
         api_secret = {{ file = '/nowhere/secret' }}\n"
    );
    let (_folder, path) = file(&text);
    let (code, page, errors) = run(gateway(&["check", "--config"]).arg(&path));
    assert_eq!((code, page.as_str()), (Some(64), ""));
    assert!(errors.ends_with("\n2 faults, 0 warnings\n"), "{errors}");
    let (code, page, errors) = run(gateway(&["check", "--without-secrets", "--config"]).arg(&path));
    assert_eq!((code, errors.as_str()), (Some(0), "OK\n"));
    assert!(page.contains("api_secret = { file = \"/nowhere/secret\" } # masked"), "{page}");
    fs::write(&path, format!("{text}rate = '5'\n")).unwrap();
    let (code, page, errors) = run(gateway(&["check", "--without-secrets", "--config"]).arg(&path));
    assert_eq!((code, page.as_str()), (Some(64), ""));
    assert!(errors.contains(":5: accounts.a.rate: ") && errors.ends_with("\n1 fault, 0 warnings\n"), "{errors}");
}

#[test]
fn an_empty_config_variable_counts_as_unset() {
    let (code, _, errors) = run(with_account(gateway(&["check"]).env("INSIGHTS_GATEWAY_CONFIG", "")));
    assert_eq!((code, errors.as_str()), (Some(0), "OK\n"));
}

#[test]
fn a_missing_file_and_a_missing_account_say_what_to_do() {
    let (code, _, errors) = run(&mut gateway(&["check", "--config", "/nowhere/gateway.toml"]));
    assert_eq!(code, Some(64));
    assert!(errors.starts_with("/nowhere/gateway.toml: cannot be read: "), "{errors}");
    let (code, _, errors) = run(&mut gateway(&["serve"]));
    assert_eq!(code, Some(64));
    assert!(errors.contains("TWILIO_ACCOUNT_SID") && errors.contains("[accounts.main]"), "{errors}");
}

#[test]
fn token_new_prints_a_fresh_token_alone_and_the_lines_for_the_configuration_apart() {
    let tokens: Vec<String> = (0..2)
        .map(|_| {
            let (code, page, errors) = run(&mut gateway(&["token", "new", "dashboards"]));
            assert_eq!(code, Some(0));
            let token = page.strip_suffix('\n').unwrap().to_owned();
            assert!(token.starts_with("igw_") && token.len() == 47, "{token}");
            assert!(!errors.contains(&token), "{errors}");
            let hash = crate::support::sha256_hex(&token);
            let lines = format!("[teams.dashboards]\ntoken_sha256 = [\"{hash}\"]\n");
            assert!(errors.ends_with(&lines), "{errors}");
            let (_folder, path) = file(&lines);
            let (code, ..) = run(with_account(gateway(&["check", "--config"]).arg(&path)));
            assert_eq!(code, Some(0));
            token
        })
        .collect();
    assert_ne!(tokens[0], tokens[1]);
    for name in ["local", "a b", ""] {
        assert_eq!(run(&mut gateway(&["token", "new", name])).0, Some(64), "{name:?}");
    }
}

#[test]
fn token_new_prints_one_object_for_programs() {
    let (code, page, errors) = run(&mut gateway(&["token", "new", "dashboards", "--json"]));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let object: serde_json::Value = serde_json::from_str(&page).unwrap();
    let hash = crate::support::sha256_hex(object["token"].as_str().unwrap());
    assert_eq!((object["team"].as_str(), object["token_sha256"].as_str()), (Some("dashboards"), Some(hash.as_str())));
}

#[test]
fn help_and_version_are_everywhere() {
    for path in [
        &[][..],
        &["serve"],
        &["demo"],
        &["simulate"],
        &["check"],
        &["token"],
        &["token", "new"],
        &["health"],
        &["completions"],
        &["man"],
        &["schema"],
    ] {
        for flag in ["--help", "--version"] {
            let (code, page, errors) = run(gateway(path).arg(flag));
            assert_eq!((code, errors.as_str()), (Some(0), ""), "{path:?} {flag}");
            assert!(flag == "--help" || page.contains(env!("CARGO_PKG_VERSION")), "{page}");
        }
    }
    for wrong in [&[][..], &["serv"], &["serve", "--nope"], &["serve", "--set", "x"], &["token"]] {
        let (code, page, errors) = run(&mut gateway(wrong));
        assert_eq!((code, page.as_str()), (Some(64), ""), "{wrong:?}");
        assert!(!errors.is_empty());
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run(&mut gateway(&["completions", shell]));
        assert_eq!(code, Some(0));
        assert!(script.contains("insights-gateway") && script.contains("completions"), "{shell}");
    }
    assert_eq!(run(&mut gateway(&["completions", "tcsh"])).0, Some(64));
}

/// An admin plane that answers once, and the request that it got.
fn answering(answer: &'static str) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (address, server)
}

#[test]
fn health_asks_readyz() {
    let (address, server) = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (code, _, errors) = run(gateway(&["health", "--url"]).arg(format!("http://{address}/")));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let request = server.join().unwrap();
    assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("Host: {address}\r\n")), "{request}");

    let (address, server) = answering("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"draining\":true}\n");
    let (code, _, errors) = run(gateway(&["health"]).env("INSIGHTS_GATEWAY_ADMIN__LISTEN", &address));
    assert_eq!(code, Some(1));
    assert!(errors.contains("/readyz answered 503: {\"draining\":true}"), "{errors}");
    server.join().unwrap();
}

#[test]
fn health_says_why_not() {
    // Bound, so that no other process gets the port, but not listened on.
    let dead = TcpSocket::new_v4().unwrap();
    dead.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", dead.local_addr().unwrap());
    let (code, _, errors) = run(gateway(&["health", "--url"]).arg(url));
    assert_eq!(code, Some(1));
    assert!(errors.contains("no answer: "), "{errors}");
    for url in ["https://127.0.0.1:9090", "127.0.0.1:9090", "http://"] {
        assert_eq!(run(&mut gateway(&["health", "--url", url])).0, Some(64), "{url}");
    }
}
