//! Why the store is not used, in words for operators.
//!
//! The texts of the client library are not shown as they are: they name its own types, and a server can put the hashes
//! of scripts and what was sent to it into its errors. A cause has the server's error code at its end, if there is one.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError};

/// What was answered is not the protocol, or not what was asked for.
pub(super) const NOT_A_STORE: &str = "what answers at this address is not a Redis or Valkey";
/// Nothing was answered.
pub(super) const NO_ANSWER: &str = "the store did not answer in time";

/// A script was refused because of one of its commands. `SharedStore::explain` finds out
/// which.
pub(super) const UNNAMED_RIGHT: &str = "the user lacks the right to run a command that scripts need: NOPERM";

/// Error codes of servers, and what they mean.
const CODES: [(&str, &str); 16] = [
    ("WRONGPASS", "the store refuses the user name or password"),
    ("NOAUTH", "the store requires a password"),
    ("NOPERM", "the user lacks a right, or may not use keys that begin with shared.prefix"),
    ("READONLY", "the store refuses writes, because it is a copy of another server"),
    ("OOM", "the store is out of memory"),
    ("MISCONF", "the store refuses writes, because it cannot save its data"),
    ("NOREPLICAS", "the store refuses writes, because it has too few copies"),
    ("LOADING", "the store is loading its data"),
    ("BUSY", "the store is busy with a script of another client"),
    ("DENIED", "the store is in protected mode and answers only on its own machine"),
    ("CLUSTERDOWN", "the cluster is down, or does not serve all keys"),
    ("MASTERDOWN", "the store has lost its primary"),
    ("TRYAGAIN", "the cluster is moving keys"),
    ("MOVED", "the store is a cluster, and the key is at another of its nodes"),
    ("ASK", "the cluster is moving keys"),
    ("NOMASTERLINK", "the store has lost its primary"),
];

/// Why this operation, or the attempt to connect, failed. It is one short line without secrets.
pub(super) fn of(error: &RedisError) -> String {
    let code = error.code();
    let text = match code {
        Some(code) => format!("{code} {}", error.detail().unwrap_or_default()),
        None => error.to_string(),
    };
    match error.kind() {
        _ if let Some(cause) = known(&text) => cause,
        _ if code.is_some() => format!("the store answers: {}", plain(&text)),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => NOT_A_STORE.to_owned(),
        ErrorKind::MasterNameNotFoundBySentinel => {
            "the Sentinels do not name a primary of the service in shared.url that can be reached".to_owned()
        }
        ErrorKind::Io => match error.source() {
            Some(source) => on_the_way(source, &text),
            None => format!("no node of the cluster is reached: {}", plain(error.detail().unwrap_or(&text))),
        },
        _ => plain(&text),
    }
}

/// What an error says that has a known meaning, also if it is part of another one.
fn known(text: &str) -> Option<String> {
    if let Some(command) = refused_command(text) {
        return Some(format!("the user may not run {command}: NOPERM"));
    }
    // How servers tell a script that it may not run a command. They do not name it.
    let is_right = text.contains("The user executing the script can't run") || text.contains("ACL failure in script");
    if is_right && !text.contains(" key") {
        return Some(UNNAMED_RIGHT.to_owned());
    }
    if text.contains("unauthenticated multibulk length") || text.contains("unauthenticated bulk length") {
        // Servers say so of a long command, before they look at who sends it.
        return Some("the store requires a password: NOAUTH".to_owned());
    }
    if text.contains("authentication failed") {
        // The library does not tell the server's answer.
        return Some("the store refuses the user name or password: authentication failed".to_owned());
    }
    if text.contains("Parse error at") {
        return Some(NOT_A_STORE.to_owned());
    }
    let mut words = text.split(|c: char| !c.is_ascii_uppercase());
    let (code, meaning) = words.find_map(|word| CODES.iter().find(|(code, _)| *code == word))?;
    Some(format!("{meaning}: {code}"))
}

/// The command that the user may not run.
fn refused_command(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("permissions to run the '")?;
    let (command, _) = rest.split_once('\'')?;
    let is_name = command.len() < 40 && command.chars().all(|c| c.is_ascii_alphanumeric() || "|-.".contains(c));
    is_name.then(|| command.to_uppercase().replace('|', " "))
}

/// What failed between the two. The library keeps the error of the system in an `Arc`.
fn on_the_way(source: &(dyn Error + 'static), text: &str) -> String {
    let text = plain(text);
    let shared = source.downcast_ref::<Arc<dyn Error + Send + Sync>>();
    let Some(error) = shared.and_then(|error| error.downcast_ref::<io::Error>()) else { return text };
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::NotFound => "there is no socket at this path".to_owned(),
        io::ErrorKind::TimedOut => NO_ANSWER.to_owned(),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::NotConnected => "the connection to the store broke".to_owned(),
        io::ErrorKind::InvalidData => format!("TLS: {text}"),
        _ => text,
    }
}

/// A text that someone else wrote, on one line, and without what may be a hash or an argument.
fn plain(text: &str) -> String {
    const LONGEST: usize = 200;
    const HASH: usize = 32;
    let text = [" script: ", ", with args"].iter().fold(text, |text, end| text.split(end).next().unwrap_or(text));
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let parts = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    let shown = parts.filter(|part| part.trim_end_matches(|c: char| !c.is_ascii_hexdigit()).len() < HASH);
    shown.flat_map(str::chars).take(LONGEST).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use redis::{ServerErrorKind, Value};

    use super::*;

    /// The cause of this line of a server.
    fn of_line(line: &str) -> String {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => of(&error.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refusals_are_told_in_plain_words_with_their_code() {
        const SHA: &str = "b0d697da25b13e49157b2c214a4033546aba2104";
        let script = format!("READONLY You can't write against a read only replica. script: {SHA}, on @user_script:1.");
        let old_script = format!(
            "ERR Error running script (call to f_{SHA}): @user_script:2: @user_script: 2: -OOM command not allowed"
        );
        for (line, cause) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", "user name or password: WRONGPASS"),
            ("NOAUTH Authentication required.", "the store requires a password: NOAUTH"),
            ("NOPERM this user has no permissions to run the 'set' command", "the user may not run SET: NOPERM"),
            (
                "NOPERM User a has no permissions to run the 'cluster|slots' command",
                "may not run CLUSTER SLOTS: NOPERM",
            ),
            ("ERR this user has no permissions to run the 'select' command", "the user may not run SELECT: NOPERM"),
            ("NOPERM this user has no permissions to access one of the keys", "begin with shared.prefix: NOPERM"),
            (&script, "the store refuses writes, because it is a copy of another server: READONLY"),
            (&old_script, "the store is out of memory: OOM"),
            ("ERR Protocol error: unauthenticated multibulk length", "the store requires a password: NOAUTH"),
            ("ERR The user executing the script can't run this command or subcommand script: abc", UNNAMED_RIGHT),
            ("LOADING Redis is loading the dataset in memory", "the store is loading its data: LOADING"),
            ("ERR DB index is out of range", "the store answers: ERR DB index is out of range"),
        ] {
            let told = of_line(line);
            assert!(told.ends_with(cause), "{line}: {told}");
        }
    }

    #[test]
    fn nothing_that_was_sent_and_no_hash_is_told() {
        let told = of_line("ERR unknown command 'AUTH', with args beginning with: 'gateway' 's3cr3t'");
        assert_eq!(told, "the store answers: ERR unknown command 'AUTH'");
        let told = of_line(&format!("ERR Error running script (call to f_{}): attempt", "0a".repeat(20)));
        assert!(told.starts_with("the store answers: ERR Error running script") && !told.contains("0a0a"), "{told}");
        assert!(of_line(&format!("ERR {}", "x ".repeat(500))).len() < 250);
    }

    #[test]
    fn what_fails_on_the_way_is_told_in_plain_words() {
        let io = |kind: io::ErrorKind| of(&io::Error::new(kind, "text").into());
        assert_eq!(io(io::ErrorKind::ConnectionRefused), "connection refused");
        assert_eq!(io(io::ErrorKind::BrokenPipe), "the connection to the store broke");
        assert_eq!(io(io::ErrorKind::InvalidData), "TLS: text");
        assert_eq!(
            redis::parse_redis_value(b"HTTP/1.1 400\r\n").map_err(|error| of(&error)),
            Err(NOT_A_STORE.to_owned())
        );
        let of_nodes = |why: &str| of(&(ErrorKind::Io, "Failed to create initial connections", why.to_owned()).into());
        assert_eq!(of_nodes("refused"), "no node of the cluster is reached: refused");
        assert!(of_nodes("Password authentication failed - AuthenticationFailed").contains("user name or password"));
        assert!(of(&(ErrorKind::AuthenticationFailed, "Password authentication failed").into()).contains("password"));
        let refused = (ServerErrorKind::ResponseError.into(), "refused to switch database", "DB index".to_owned());
        assert_eq!(of(&refused.into()), "the store answers: ERR DB index");
    }
}
