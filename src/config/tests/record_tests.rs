//! The record of a configuration: what is shown, what differs, and what waits for a restart.

use super::*;

#[test]
fn a_key_that_is_read_at_the_start_waits_for_a_restart() {
    let record = |text: &str| loaded(account(), text).record;
    let old = record("");
    let new = record(
        "[server]\nlisten = ['127.0.0.1:1']\ndrain = '30s'\nmax_body = '2MiB'\n[telemetry]\notlp = 'http://h'\n\
         [cache.disk]\npath = '/x'\n[log]\naccess = false\nformat = 'json'",
    );
    let differ = ["server.listen", "cache.disk.path", "log.format", "telemetry.otlp"];
    assert_eq!(new.waiting_for_restart(&old), differ);
    assert_eq!(old.waiting_for_restart(&new), differ);
    assert_eq!(new.waiting_for_restart(&new), [""; 0]);
}

#[test]
fn only_whether_there_is_tls_waits_for_a_restart() {
    let folder = Folder::new();
    let elsewhere = Folder::new();
    let (one, other) = (certificate(&folder), certificate(&elsewhere));
    let with = |(cert, key): &(PathBuf, PathBuf)| {
        let text = format!("[server]\ntls = {{ cert = '{}', key = '{}' }}", cert.display(), key.display());
        loaded(account(), &text).record
    };
    let without = loaded(account(), "").record;
    assert_eq!(with(&other).waiting_for_restart(&with(&one)), [""; 0]);
    assert_eq!(with(&one).waiting_for_restart(&without), ["server.tls"]);
    assert_eq!(without.waiting_for_restart(&with(&one)), ["server.tls"]);
}

#[test]
fn what_differs_from_the_defaults_says_where_it_was_set() {
    let folder = Folder::new();
    let text = format!("[cache]\ncapacity = '7MiB'\n[retry]\nattempts = 4\n[teams.t]\ntoken_sha256 = '{HASH}'\n");
    let file = folder.write("gateway.toml", text);
    let sources = account()
        .with_file(&file)
        .with_variable("INSIGHTS_GATEWAY_LOG__ACCESS", "false")
        .with_variable("HTTPS_PROXY", "http://egress.example:3128")
        .with_flag("server.drain", "1s");
    let file = file.display();
    let expected = format!(
        "[server]\ndrain = \"1s\" # from flags\n\n\
         [upstream]\nproxy = \"http://egress.example:3128\" # from environment: HTTPS_PROXY\n\n\
         [accounts.default]\naccount_sid = \"{SID}\" # from environment: TWILIO_ACCOUNT_SID\n\
         api_key = {{ env = \"TWILIO_API_KEY\" }} # masked, from environment: TWILIO_API_KEY\n\
         api_secret = {{ env = \"TWILIO_API_SECRET\" }} # masked, from environment: TWILIO_API_SECRET\n\n\
         [teams.t]\ntoken_sha256 = [\"{HASH}\"] # from {file}:6\n\n\
         [cache]\ncapacity = \"7MiB\" # from {file}:2\n\n\
         [log]\naccess = false # from environment: INSIGHTS_GATEWAY_LOG__ACCESS\n"
    );
    assert_eq!(load(&sources).unwrap().record.diff(), expected);
}

#[test]
fn what_is_shown_loads_to_the_same() {
    let text = format!(
        "[accounts.a]\naccount_sid = '{SID}'\napi_key = {{ env = 'TWILIO_API_KEY' }}\n\
         api_secret = {{ env = 'TWILIO_API_SECRET' }}\nrate = '0/s'\n\
         [teams.t]\ntoken_sha256 = '{HASH}'\nrequests = '7/min'\noperations = ['jobs']\n\
         [teams.t.policy]\ndeny = ['A.*']\nrequire = [{{ op = 'IN', field = 'F', values = ['x\"', 'y'] }}]\n\
         [cache]\ncapacity = '3MiB'\n[circuit]\nratio = 1\n[log]\nhits = 0\n\
         [server]\nlisten = ['unix:/run/x.sock']\n"
    );
    let once = loaded(account(), &text).show();
    assert_eq!(loaded(account(), &once).show(), once);
}
