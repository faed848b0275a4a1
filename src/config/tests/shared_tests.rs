//! `[shared]`: addresses, keys that need each other, and secrets.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::ExposeSecret;

use super::*;

fn key(byte: u8) -> String {
    BASE64_STANDARD.encode([byte; 32])
}

/// A section for a store on loopback, with more keys.
fn shared(more: &str) -> String {
    format!("[shared]\nurl = 'redis://localhost'\nreplicas = 3\n{more}")
}

fn url(text: &str) -> StoreUrl {
    let config = loaded(account(), &format!("[shared]\nurl = '{text}'\nreplicas = 3\nseal = '{}'", key(1)));
    config.shared.unwrap().url
}

fn host(host: &str, port: u16) -> HostPort {
    HostPort { host: host.to_owned(), port }
}

#[test]
fn a_gateway_shares_nothing_without_a_url() {
    assert!(load(&account()).unwrap().shared.is_none());
    // These have defaults or an example in the reference file, so they may stay when the URL is taken out.
    let text = "[shared]\nprefix = 'p'\ntimeout = '1s'\nlease = '9s'\nreplicas = 2";
    let config = loaded(account(), text);
    assert!(config.shared.is_none() && config.warnings.is_empty());
    for line in ["username = 'u'", "password = { env = 'TWILIO_API_SECRET' }", "seal = { env = 'SEAL' }"] {
        let faults = faults_of(account().with_variable("SEAL", key(1)), &format!("[shared]\n{line}"));
        let key = line.split(' ').next().unwrap();
        assert!(faults.len() == 1 && faults[0].starts_with(&format!("2: shared.{key}: ")), "{faults:?}");
        assert!(faults[0].contains("without shared.url"), "{faults:?}");
    }
}

#[test]
fn the_section_is_read() {
    let folder = Folder::new();
    let password = folder.write("password", "store-passw0rd\n");
    let first = folder.write("seal", key(1) + "\n");
    let text = format!(
        "[shared]\nurl = 'rediss://Cache.internal/2'\nusername = 'gateway'\npassword = {{ file = '{}' }}\n\
         seal = [{{ file = '{}' }}, {{ env = 'SECOND' }}]\nprefix = 'a:b'\ntimeout = '250ms'\nlease = '2s'\nreplicas = 5\n",
        password.display(),
        first.display()
    );
    let config = loaded(account().with_variable("SECOND", key(2)), &text);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!([&password, &first].iter().all(|file| config.files.paths().contains(file)));
    let shared = config.shared.as_ref().unwrap();
    assert_eq!(shared.url, StoreUrl { servers: Servers::Single(host("cache.internal", 6379)), tls: true, database: 2 });
    assert_eq!(shared.username.as_deref(), Some("gateway"));
    assert_eq!(shared.password.as_ref().unwrap().expose_secret(), "store-passw0rd");
    assert_eq!(shared.seal.iter().map(|key| **key).collect::<Vec<_>>(), [[1; 32], [2; 32]]);
    assert_eq!((shared.prefix.as_str(), shared.replicas), ("a:b", 5));
    assert_eq!((shared.timeout, shared.lease), (Duration::from_millis(250), Duration::from_secs(2)));
    let shown = config.show();
    for line in [
        "url = \"rediss://cache.internal:6379/2\"\n".to_owned(),
        format!("password = {{ file = \"{}\" }} # masked\n", password.display()),
        format!("seal = [{{ file = \"{}\" }}, {{ env = \"SECOND\" }}] # masked\n", first.display()),
    ] {
        assert!(shown.contains(&line), "{line}\n{shown}");
    }
    assert_eq!(loaded(account().with_variable("SECOND", key(2)), &shown).show(), shown);
}

#[test]
fn the_defaults() {
    let shared = loaded(account(), &shared("")).shared.unwrap();
    assert_eq!((shared.timeout, shared.lease), (Duration::from_millis(100), Duration::from_secs(5)));
    assert_eq!(shared.prefix, "insights-gateway");
    assert!(shared.username.is_none() && shared.password.is_none() && shared.ca_file.is_none());
    assert!(shared.seal.is_empty());
}

#[test]
fn every_kind_of_store_has_an_address() {
    let single = |name: &str, port| Servers::Single(host(name, port));
    let sentinel = |hosts, service: &str| Servers::Sentinel { hosts, service: service.to_owned() };
    for (text, servers, tls, database, shown) in [
        ("redis://h", single("h", 6379), false, 0, "redis://h:6379"),
        ("REDIS://H:1/", single("h", 1), false, 0, "redis://h:1"),
        ("redis://h/0", single("h", 6379), false, 0, "redis://h:6379"),
        ("rediss://10.0.0.1:7000/15", single("10.0.0.1", 7000), true, 15, "rediss://10.0.0.1:7000/15"),
        ("redis://[2001:DB8::1]/1", single("2001:db8::1", 6379), false, 1, "redis://[2001:db8::1]:6379/1"),
        ("redis://[::1]:65535", single("::1", 65535), false, 0, "redis://[::1]:65535"),
        ("unix:///run/redis.sock", Servers::Unix("/run/redis.sock".into()), false, 0, "unix:///run/redis.sock"),
        (
            "redis+sentinel://a,b:1,[::1]/my.primary-1_x/3",
            sentinel(vec![host("a", 26379), host("b", 1), host("::1", 26379)], "my.primary-1_x"),
            false,
            3,
            "redis+sentinel://a:26379,b:1,[::1]:26379/my.primary-1_x/3",
        ),
        ("rediss+sentinel://a/s", sentinel(vec![host("a", 26379)], "s"), true, 0, "rediss+sentinel://a:26379/s"),
        (
            "redis+cluster://a,b:7001/0",
            Servers::Cluster(vec![host("a", 6379), host("b", 7001)]),
            false,
            0,
            "redis+cluster://a:6379,b:7001",
        ),
        ("rediss+cluster://a", Servers::Cluster(vec![host("a", 6379)]), true, 0, "rediss+cluster://a:6379"),
    ] {
        let parsed = url(text);
        assert_eq!(parsed, StoreUrl { servers, tls, database }, "{text}");
        assert_eq!(parsed.to_string(), shown);
        assert_eq!(url(shown), parsed);
    }
}

#[test]
fn malformed_addresses_are_refused_and_never_repeated() {
    for (text, part) in [
        ("localhost:6379", "expected a URL"),
        ("planted", "expected a URL"),
        ("http://planted", "must start with one of redis://, rediss://"),
        ("redi://planted", "(did you mean redis?)"),
        ("redis+sentinels://planted/s", "(did you mean redis+sentinel?)"),
        ("redis://:planted@h", "user or password"),
        ("rediss://planted@h", "user or password"),
        ("redis://u:plan/ted@h", "user or password"),
        ("redis+cluster://a,u:planted@b", "user or password"),
        ("redis+sentinel://u:planted@a/s", "user or password"),
        ("redis://h?password=planted", "query"),
        ("redis://h/0#planted", "fragment"),
        ("unix:///run/r.sock?pass=planted", "query"),
        ("unix://run/planted.sock", "absolute path"),
        ("unix://", "absolute path"),
        ("redis://", "a host is missing"),
        ("redis:///1", "a host is missing"),
        ("redis://:6379", "a host is missing"),
        ("redis+cluster://a,,b", "a host is missing"),
        ("redis+cluster://a,", "a host is missing"),
        ("redis+sentinel:///s", "a host is missing"),
        ("redis://a,b", "one host"),
        ("redis://plan ted", "a host must be"),
        ("redis://plan%74ed", "a host must be"),
        ("redis://300.0.0.1", "a host must be"),
        ("redis://::1", "a host must be"),
        ("redis://[::1", "a host must be"),
        ("redis://[planted]", "a host must be"),
        ("redis://h:", "the port"),
        ("redis://h:0", "the port"),
        ("redis://h:65536", "the port"),
        ("redis://h:+1", "the port"),
        ("redis://h:planted", "the port"),
        ("redis://[::1]6379", "the port"),
        ("redis+sentinel://a:x/s", "the port"),
        ("redis://h/planted", "number of a database"),
        ("redis://h/-1", "number of a database"),
        ("redis://h/1/2", "number of a database"),
        ("redis://h/99999", "number of a database"),
        ("redis+sentinel://a/s/x", "number of a database"),
        ("redis+sentinel://a", "name the primary"),
        ("redis+sentinel://a/", "name the primary"),
        ("redis+sentinel://a//1", "name the primary"),
        ("redis+sentinel://a/plan ted", "the primary's name"),
        ("redis+cluster://a/1", "only the database 0"),
        ("redis+cluster://a/s", "number of a database"),
    ] {
        let text = format!("[shared]\nurl = '{text}'\nreplicas = 3\nseal = '{}'", key(1));
        assert_one_fault(&text, "2: shared.url: ", part);
        assert!(!faults_of(account(), &text)[0].contains("plan"), "{text}");
    }
    let long = format!("unix:///{}", "x".repeat(107));
    assert_one_fault(&format!("[shared]\nurl = '{long}'\nreplicas = 3"), "2: shared.url: ", "107 bytes");
}

#[test]
fn keys_that_need_or_exclude_each_other() {
    let folder = Folder::new();
    let root = folder.write("root", "-----BEGIN CERTIFICATE-----\n");
    let ca_file = format!("ca_file = '{}'", root.display());
    assert_one_fault("[shared]\nurl = 'redis://localhost'", "1: shared.replicas: missing", "number of replicas");
    assert_one_fault(&shared("username = 'u'"), "1: shared.password: missing", "username");
    assert_one_fault(&shared(&ca_file), "4: shared.ca_file: ", "rediss://");
    assert_one_fault(&shared("lease = '100ms'"), "4: shared.lease: ", "longer than shared.timeout");
    assert_one_fault(&shared("timeout = '5s'"), "1: shared.lease: ", "longer than shared.timeout");
    let sealed = |url: &str| format!("[shared]\nurl = '{url}'\nreplicas = 3\nseal = {{ env = 'SEAL' }}\n{ca_file}");
    let sources = || account().with_variable("SEAL", key(1));
    for url in ["rediss://localhost", "rediss+cluster://h", "rediss+sentinel://h/s"] {
        assert_eq!(faults_of(sources(), &sealed(url)), [""; 0], "{url}");
    }
    for url in ["unix:///run/redis.sock", "redis+cluster://h", "redis+sentinel://h/s"] {
        let faults = faults_of(sources(), &sealed(url));
        assert!(faults.len() == 1 && faults[0].starts_with("5: shared.ca_file: "), "{url}: {faults:?}");
    }
}

#[test]
fn values_out_of_range() {
    for (line, part) in [
        ("replicas = 0", "1 to 10000"),
        ("replicas = -1", "1 to 10000"),
        ("replicas = '3'", "1 to 10000"),
        ("replicas = 10001", "1 to 10000"),
    ] {
        let text = format!("[shared]\nurl = 'redis://localhost'\n{line}");
        assert_one_fault(&text, "3: shared.replicas: ", part);
    }
    for (line, part) in [
        ("timeout = '0s'", "from 1ms to 10s"),
        ("timeout = '11s'", "from 1ms to 10s"),
        ("timeout = 100", "expected a duration"),
        ("lease = '0s'", "from 2ms to 5m"),
        ("lease = '6m'", "from 2ms to 5m"),
        ("prefix = ''", "must not be empty"),
        ("prefix = 'a{b}'", "letters, digits"),
        ("prefix = 'a*'", "letters, digits"),
        ("prefix = 'a b'", "letters, digits"),
        ("prefix = 'ä'", "letters, digits"),
        ("ca_file = '/nowhere'", "cannot be read"),
        ("usrename = 'u'", "did you mean username?"),
    ] {
        let key = line.split(' ').next().unwrap();
        let faults = faults_of(account(), &shared(line));
        assert!(faults[0].starts_with(&format!("4: shared.{key}: ")) && faults[0].contains(part), "{line}: {faults:?}");
    }
    let long = format!("prefix = '{}'", "x".repeat(65));
    assert_one_fault(&shared(&long), "4: shared.prefix: ", "1 to 64");
    assert_one_fault(&shared("username = 'a b'\npassword = 'x'"), "4: shared.username: ", "white space");
}

#[test]
fn only_a_store_on_this_machine_may_do_without_seal() {
    let without = |url: &str| format!("[shared]\nurl = '{url}'\nreplicas = 3");
    for url in [
        "redis://localhost",
        "redis://127.9.9.9:1",
        "rediss://[::1]",
        "redis://[::ffff:127.0.0.1]",
        "unix:///run/redis.sock",
        "redis+cluster://127.0.0.1:7000,localhost:7001",
        "redis+sentinel://a.localhost/s",
    ] {
        let warnings = loaded(account(), &without(url)).warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(":1: shared.seal: not set"), "{url}: {warnings:?}");
        assert!(warnings[0].contains("clear text"), "{warnings:?}");
    }
    for url in [
        "rediss://cache.internal",
        "redis://0.0.0.0",
        "redis://localhost.example",
        "redis+cluster://localhost,cache.internal",
        "redis+sentinel://127.0.0.1,10.0.0.1/s",
    ] {
        assert_one_fault(&without(url), "1: shared.seal: missing", "openssl rand -base64 32");
    }
}

#[test]
fn seal_keys_are_32_bytes_and_differ() {
    let sealed = |entries: &str| shared(&format!("seal = {entries}"));
    for text in [
        "planted",
        &BASE64_STANDARD.encode([1; 31]),
        &BASE64_STANDARD.encode([1; 33]),
        &key(1).replace('=', ""),
        &format!("{}B=", &key(1)[..42]),
        &"0".repeat(64),
    ] {
        let text = sealed(&format!("['{}', '{text}']", key(9)));
        assert_one_fault(&text, "4: shared.seal[1]: ", "32 bytes in base64");
        assert!(!faults_of(account(), &text)[0].contains("planted"));
    }
    assert_one_fault(&sealed(&format!("['{0}', '{0}']", key(1))), "4: shared.seal[1]: ", "same key");
    assert_one_fault(&sealed("[]"), "4: shared.seal: ", "empty");
    assert_one_fault(&sealed("[{ env = 'NO' }]"), "4: shared.seal[0].env: ", "not set");
    assert_one_fault(&sealed("{ flie = 'x' }"), "4: shared.seal.flie: ", "mean file?");
    let many = (0..9).map(|byte| format!("'{}'", key(byte))).collect::<Vec<_>>().join(", ");
    assert_one_fault(&sealed(&format!("[{many}]")), "4: shared.seal: ", "at most 8 keys");
    let literal = loaded(account(), &sealed(&format!("'{}'", key(1))));
    assert!(
        literal.warnings[0].contains(":4: shared.seal: the secret itself is in the configuration"),
        "{:?}",
        literal.warnings
    );
    assert!(literal.show().contains("seal = [\"********\"] # masked\n"), "{}", literal.show());
}

#[test]
fn a_password_in_clear_text_on_the_network_is_a_warning() {
    let text = |url: &str| {
        format!(
            "[shared]\nurl = '{url}'\nreplicas = 3\npassword = {{ env = 'TWILIO_API_SECRET' }}\nseal = {{ env = 'SEAL' }}"
        )
    };
    let warnings = |url: &str| loaded(account().with_variable("SEAL", key(1)), &text(url)).warnings;
    assert!(warnings("redis://cache.internal")[0].contains(":2: shared.url: the password crosses"));
    for url in ["rediss://cache.internal", "redis://localhost", "unix:///run/redis.sock"] {
        assert!(warnings(url).is_empty(), "{url}");
    }
}

#[test]
fn the_environment_sets_the_section() {
    let variable = |sources: Sources, name: &str, value: &str| {
        sources.with_variable(format!("INSIGHTS_GATEWAY_SHARED__{name}"), value)
    };
    let sources = variable(account(), "URL", "rediss+cluster://a,b");
    let sources = variable(variable(sources, "REPLICAS", "2"), "PASSWORD", "store-passw0rd");
    let both = variable(sources.clone(), "SEAL", &format!("{},{}", key(1), key(2)));
    let config = load(&both).unwrap_or_else(|faults| panic!("{faults}"));
    let shared = config.shared.as_ref().unwrap();
    assert_eq!(shared.url.to_string(), "rediss+cluster://a:6379,b:6379");
    assert_eq!((shared.replicas, shared.seal.len()), (2, 2));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let shown = format!("{}{:?}", config.show(), config);
    for secret in ["store-passw0rd", &key(1), "[1, 1"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    // Each spelling replaces the file's whole list.
    let file = format!("[shared]\nseal = ['{}', '{}']", key(3), key(4));
    let named = sources.with_variable("KEY", key(5));
    for (name, value) in
        [("SEAL", "{ env = 'KEY' }"), ("SEAL", "[{ env = 'KEY' }]"), ("SEAL__ENV", "KEY"), ("SEAL", &key(5))]
    {
        let seal = loaded(variable(named.clone(), name, value), &file).shared.unwrap().seal;
        assert_eq!(seal.iter().map(|key| **key).collect::<Vec<_>>(), [[5; 32]], "{name}={value}");
    }
}

#[test]
fn a_check_without_secrets_needs_none_of_the_section() {
    let folder = Folder::new();
    let text = "[shared]\nurl = 'rediss://cache.internal'\nreplicas = 3\nusername = 'u'\n\
                password = { file = '/nowhere/password' }\nseal = [{ file = '/nowhere/seal' }, { env = 'NO' }]";
    let check = |text: &str| check_without_secrets(&account().with_file(folder.write("gateway.toml", text)));
    let (record, warnings) = check(text).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(record.show().contains("seal = [{ file = \"/nowhere/seal\" }, { env = \"NO\" }] # masked"));
    let faults = check(&text.replace("{ env = 'NO' }", "'short'")).unwrap_err().to_string();
    assert!(faults.contains("shared.seal[1]: expected 32 bytes"), "{faults}");
}

#[test]
fn a_reload_takes_what_rotates_and_all_else_waits_for_a_restart() {
    let seal = |number: u8| format!("seal = '{}'\n", key(number));
    let with = |more: &str| loaded(account(), &shared(more));
    let old = with(&(seal(1) + "username = 'a'\npassword = 'one'"));
    let waiting = |new: Config| new.waiting_for_restart(&old);
    assert_eq!(waiting(with(&(seal(2) + "username = 'b'\npassword = 'two'"))), [""; 0]);
    let others = "prefix = 'p'\ntimeout = '1s'\nlease = '6s'";
    let keys = ["shared.prefix", "shared.timeout", "shared.lease"];
    assert_eq!(waiting(with(&(seal(1) + others))), keys);
    assert_eq!(waiting(loaded(account(), "")), ["shared.url", "shared.replicas"]);
    assert_eq!(old.waiting_for_restart(&loaded(account(), "")), ["shared.url", "shared.replicas"]);
}
