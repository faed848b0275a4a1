//! Faults: all at once, each with its place and what to do.

use super::*;

#[test]
fn faults_in_tokens_that_expire() {
    let entry = |entry: &str| format!("[teams.t]\ntoken_sha256 = [{entry}]\n");
    let at = "2: teams.t.token_sha256[0]";
    for expires in
        ["'tomorrow'", "'2999-01-31T12:00:00'", "'2999-02-30'", "'9999-12-31'", "''", "1", "true", "12:00:00"]
    {
        assert_one_fault(&entry(&format!("{{ sha256 = '{HASH}', expires = {expires} }}")), at, ".expires: ");
    }
    assert_one_fault(&entry("{ expires = '2999-01-31' }"), at, ".sha256: missing");
    assert_one_fault(&entry("{ sha256 = 'x', expires = '2999-01-31' }"), at, ".sha256: expected the SHA-256");
    assert_one_fault(&entry(&format!("{{ sha256 = '{HASH}', expire = '2999-01-31' }}")), at, "mean expires?");
    let twice = format!("'{HASH}', {{ sha256 = '{HASH}', expires = '2999-01-31' }}");
    assert_one_fault(&entry(&twice), "2: teams.t.token_sha256[1]: ", "another expiry");
    assert_eq!(loaded(account(), &entry(&format!("'{HASH}', '{HASH}'"))).teams[0].tokens.len(), 1);
}

#[test]
fn listeners_that_make_no_sense_are_faults() {
    for (key, value) in [
        ("server.listen", "systemd:"),
        ("server.listen", "systemd:a:b"),
        ("server.listen", "systemd:a,systemd:a"),
        ("server.unix_mode", "660 "),
        ("server.unix_mode", "1777"),
        ("server.unix_mode", "rw-rw----"),
        ("server.unix_mode", "0x1b0"),
        ("server.unix_mode", "+660"),
        ("server.proxy_protocol", "10.0.0.1/8"),
        ("server.proxy_protocol", "true"),
    ] {
        assert!(load(&account().with_flag(key, value)).is_err(), "{key} = {value}");
    }
    let listen = load(&account().with_flag("server.listen", "systemd:gateway")).unwrap().server.listen;
    assert_eq!(listen, [Listen::Systemd("gateway".to_owned())]);
}

#[test]
fn a_value_that_is_not_utf8_is_a_fault_where_it_is_used() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let bad = || OsString::from_vec(vec![0xff, 0xfe]);
    assert!(load(&account().with_variable("OTHER", bad())).is_ok());
    let faults = load(&account().with_variable("INSIGHTS_GATEWAY_LOG__FILTER", bad())).unwrap_err();
    assert!(faults.to_string().contains("environment: INSIGHTS_GATEWAY_LOG__FILTER: is not UTF-8"));
    // Variables that are not the gateway's own, where they are used.
    let proxied = || account().with_variable("HTTPS_PROXY", "http://egress.example:3128");
    for (name, sources) in [
        ("HTTPS_PROXY", account()),
        ("https_proxy", proxied()),
        ("NO_PROXY", proxied()),
        ("TWILIO_ACCOUNT_SID", Sources::default()),
        (
            "TWILIO_AUTH_TOKEN",
            Sources::default().with_variable("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000001"),
        ),
    ] {
        let faults = load(&sources.with_variable(name, bad())).unwrap_err().to_string();
        let expected = format!("environment: {name}: is not UTF-8 text");
        assert_eq!(faults.matches(&expected).count(), 1, "{name}: {faults}");
    }
    assert!(load(&account().with_variable("NO_PROXY", bad()).with_variable("TWILIO_AUTH_TOKEN", bad())).is_ok());
}

#[test]
fn faults_name_line_key_and_remedy() {
    assert_one_fault("[server]\nlistne = ['x']", "2: server.listne: unknown key", "(did you mean listen?)");
    assert_one_fault("[sever]\nopen = true", "1: sever: unknown key", "(did you mean server?)");
    assert_one_fault("[server]\ncapacity = '1MiB'", "2: server.capacity: ", "(did you mean cache.capacity?)");
    assert_one_fault("[server]\ndrain = 30", "2: server.drain: expected a duration", "");
    assert_one_fault("[server]\nopen = 'yes'", "2: server.open: expected true or false", "found text");
    assert_one_fault("server = 5", "1: server: expected a table", "found a number");
    assert_one_fault("[server]\nlisten = []", "2: server.listen: needs at least one", "");
    assert_one_fault("[server]\nlisten = 'x'", "2: server.listen: expected a list of texts", "");
    assert_one_fault("[server]\nlisten = [\n'127.0.0.1:1',\n5]", "4: server.listen[1]: expected text", "");
    assert_one_fault("[server]\nlisten = ['localhost:80']", "2: server.listen[0]: expected an IP address", "");
    assert_one_fault("[server]\nlisten = ['unix:x']", "2: server.listen[0]: ", "absolute path");
    assert_one_fault("[server]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']", "2: server.listen[1]: ", "already");
    for (one, other) in [
        ("0.0.0.0:81", "[::ffff:127.0.0.1]:81"),
        ("[::ffff:127.0.0.1]:81", "0.0.0.0:81"),
        ("127.0.0.1:81", "[::ffff:127.0.0.1]:81"),
        ("[::ffff:0.0.0.0]:81", "127.0.0.1:81"),
        ("[::ffff:0.0.0.0]:81", "[::ffff:127.0.0.2]:81"),
    ] {
        let text = format!("[server]\nopen = true\nlisten = ['{one}', '{other}']");
        assert_one_fault(&text, "3: server.listen[1]: ", "already");
    }
    assert_eq!(faults_of(account(), "[server]\nopen = true\nlisten = ['[::]:81', '[::ffff:127.0.0.1]:81']"), [""; 0]);
    assert_one_fault("[server]\nlisten = ['0.0.0.0:80']", "2: server.listen[0]: ", "server.open = true");
    assert_one_fault("[server]\nlisten = ['127.0.0.1:9090']", "2: server.listen[0]: ", "admin");
    assert_one_fault("[server]\nmax_body = '65MiB'", "2: server.max_body: ", "from 1B to 64MiB");
    assert_one_fault("[server]\nmax_body = '0B'", "2: server.max_body: ", "from 1B");
    assert_one_fault("[server]\nheader_timeout = '0s'", "2: server.header_timeout: ", "longer than zero");
    assert_one_fault("[server]\nmax_connections = -1", "2: server.max_connections: must be", "1 to 1000000");
    assert_one_fault("[server]\npublic_url = 'http://a/b?c'", "2: server.public_url: ", "query");
    assert_eq!(faults_of(account(), "[server]\npublic_url = 'https://a.example/insights'"), [""; 0]);
    assert_one_fault("[admin]\nlisten = '127.0.0.1:8080'", "2: admin.listen: ", "another port");
    assert_one_fault("[admin]\nlisten = '0.0.0.0:9090'", "1: admin.token_sha256: required", "token new");
    assert_one_fault("[admin]\ntoken_sha256 = 'abc'", "2: admin.token_sha256: ", "64 hexadecimal");
    assert_one_fault("[upstream]\nurl = 'ftp://x'", "2: upstream.url: ", "http://");
    assert_one_fault("[upstream]\nurl = 'https://x/v3'", "2: upstream.url: ", "path");
    assert_one_fault("[upstream]\nurl = 'https://x?a=b'", "2: upstream.url: ", "query");
    assert_one_fault("[upstream]\nurl = 'https://u:p@x'", "2: upstream.url: ", "password");
    assert_one_fault("[upstream]\nurl = 'https://x:99999'", "2: upstream.url: ", "port");
    assert_one_fault("[upstream]\nurl = 'https://x:'", "2: upstream.url: ", "port");
    assert_one_fault("[upstream]\nca_file = '/nowhere'", "2: upstream.ca_file: ", "cannot be read");
    assert_one_fault("[cache]\ncapacity = '1KiB'", "2: cache.capacity: ", "from 1MiB");
    assert_one_fault("[retry]\nattempts = 21", "2: retry.attempts: ", "1 to 20");
    assert_one_fault("[retry]\nbudget = nan", "2: retry.budget: ", "0 to 10");
    assert_one_fault("[circuit]\nratio = 0", "2: circuit.ratio: ", "more than 0");
    assert_one_fault("[log]\nformat = 'jsno'", "2: log.format: ", "(did you mean json?)");
    assert_one_fault("[log]\nfilter = 'a=b=c'", "2: log.filter: ", "filter");
    assert_one_fault("[log]\nhits = 1.1", "2: log.hits: ", "0 to 1");
    assert_one_fault("[cache.query]\nfresh = '1y'", "2: cache.query.fresh: ", "duration");
}

#[test]
fn faults_in_accounts() {
    let account = |keys: &str| format!("[accounts.main]\naccount_sid = '{SID}'\n{keys}");
    let signed = |keys: &str| account(&format!("auth_token = {{ env = 'TWILIO_API_SECRET' }}\n{keys}"));
    assert_one_fault(&account(""), "1: accounts.main.api_key: missing", "auth_token");
    assert_one_fault(&account("api_key = 'SK1'"), "1: accounts.main.api_secret: missing", "");
    assert_one_fault(&signed("api_key = 'SK1'"), "3: accounts.main.auth_token: ", "not both");
    assert_one_fault(&signed("rate = '5'"), "4: accounts.main.rate: ", "rate such as");
    assert_one_fault(&signed("burst = 0"), "4: accounts.main.burst: ", "1 to 100000");
    assert_one_fault(
        &signed("[accounts.'a b']\nauth_token = 'x'\naccount_sid = 'x'"),
        "4: accounts.\"a b\": ",
        "letters",
    );
    assert_one_fault(&account("auth_token = {}"), "3: accounts.main.auth_token: give exactly one", "");
    assert_one_fault(&account("auth_token = { flie = 'x' }"), "3: accounts.main.auth_token.flie: ", "mean file?");
    assert_one_fault(&account("auth_token = { env = 'NO' }"), "3: accounts.main.auth_token.env: ", "not set");
    assert_one_fault(&account("auth_token = { file = '/nowhere' }"), "3: accounts.main.auth_token.file: ", "read");
    assert_one_fault(&account("auth_token = { file = '/' }"), "3: accounts.main.auth_token.file: ", "not a file");
    assert_one_fault(
        &account("auth_token = { credential = 'x' }"),
        "3: accounts.main.auth_token.credential: ",
        "LoadCredential",
    );
    assert_one_fault(
        &account("auth_token = { credential = '../x' }"),
        "3: accounts.main.auth_token.credential: ",
        "path",
    );
    assert_one_fault(&account("auth_token = ''"), "3: accounts.main.auth_token: must not be empty", "");
    assert_one_fault(
        "[accounts.main]\nauth_token = 'x'\naccount_sid = 'A:C'",
        "3: accounts.main.account_sid: ",
        "colon",
    );
    assert_one_fault("[accounts.main]\nauth_token = 'x'", "1: accounts.main.account_sid: missing", "");
}

#[test]
fn faults_in_teams() {
    let team = |keys: &str| format!("[teams.t]\ntoken_sha256 = '{HASH}'\n{keys}");
    assert_one_fault("[teams.t]", "1: teams.t.token_sha256: missing", "token new");
    assert_one_fault("[teams.t]\ntoken_sha256 = ['x']", "2: teams.t.token_sha256[0]: ", "64 hexadecimal");
    assert_one_fault(&team("account = 'defualt'"), "3: teams.t.account: no such account", "(did you mean default?)");
    assert_one_fault(&team("weight = 0"), "3: teams.t.weight: ", "1 to 1000");
    assert_one_fault(&team("operations = []"), "3: teams.t.operations: ", "empty");
    assert_one_fault(&team("operations = ['qery']"), "3: teams.t.operations[0]: ", "(did you mean query?)");
    assert_one_fault(&team("policy = { deny = ['a*b'] }"), "3: teams.t.policy.deny[0]: ", "end");
    assert_one_fault(&team("policy = { deny = [''] }"), "3: teams.t.policy.deny[0]: ", "empty");
    let dotless = loaded(account(), &team("policy = { deny = ['C.X', 'ParticipantId', 'Con*'] }"));
    let [name, prefix] = &dotless.warnings[..] else { panic!("{:?}", dotless.warnings) };
    assert!(name.contains("3: teams.t.policy.deny[1]: has no dot"), "{name}");
    assert!(prefix.contains("3: teams.t.policy.deny[2]: has no dot"), "{prefix}");
    for pattern in ["C.", ".X", "C..X", "C X", "C-X", "C.\u{e9}", "*", ".*", "C..*", "C.X\\u0000", "C:X*"] {
        let text = team(&format!("policy = {{ deny = [\"{pattern}\"] }}"));
        assert_one_fault(&text, "3: teams.t.policy.deny[0]: ", "match nothing");
    }
    assert!(loaded(account(), &team("policy = { deny = ['C.*', 'C.x_*', 'C.X.y'] }")).warnings.is_empty());
    let fields = "operations = ['query', 'fields-read']\npolicy = { deny = ['C.X'] }";
    assert_one_fault(&team(fields), "3: teams.t.operations: ", "policy");
    assert!(loaded(account(), &team("operations = ['query', 'fields-read']")).warnings.is_empty());
    let require = |filter: &str| team(&format!("policy = {{ require = [{{ {filter} }}] }}"));
    let at = "3: teams.t.policy.require[0]";
    assert_one_fault(&require("op = 'LIKE', field = 'F', values = ['v']"), at, "EQ, NE, GT, LT, IN");
    assert_one_fault(&require("op = 'EQ', values = ['v']"), at, "field: missing");
    assert_one_fault(&require("op = 'EQ', field = 'F G', values = ['v']"), at, "field: must be the name");
    assert_one_fault(&require("op = 'EQ', field = 'F'"), at, "values: missing");
    assert_one_fault(&require("op = 'IN', field = 'F', values = []"), at, "empty");
    assert_one_fault(&require("op = 'GT', field = 'F', values = ['a', 'b']"), at, "exactly one");
    assert_one_fault(&require("op = 'EQ', field = 'F', values = ['v'], x = 1"), at, ".x: unknown key");
    let again = team(&format!("[teams.u]\ntoken_sha256 = ['{}']", HASH.to_uppercase()));
    assert_one_fault(&again, "4: teams.u.token_sha256: ", "belongs to the team t");
    let local = format!("[teams.local]\ntoken_sha256 = '{HASH}'");
    assert_one_fault(&local, "1: teams.local: ", "built-in");
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_one_fault(&format!("[teams.t]\ntoken_sha256 = '{nothing}'"), "2: teams.t.token_sha256: ", "empty token");
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    let sources =
        account().with_variable("INSIGHTS_GATEWAY_CACHE_CAPACITY", "1MiB").with_flag("retry.attempts", "many");
    let faults = faults_of(sources, "[log]\nslow = 1\n[server]\ndrain = 1\nopen = 1\n[admin]\nx = 1\n");
    let starts = [
        "2: log.slow: ",
        "4: server.drain: ",
        "5: server.open: ",
        "7: admin.x: ",
        "environment: INSIGHTS_GATEWAY_CACHE_CAPACITY: unknown key (did you mean INSIGHTS_GATEWAY_CACHE__CAPACITY?)",
        "flags: retry.attempts: ",
    ];
    assert_eq!(faults.len(), starts.len(), "{faults:#?}");
    for (fault, start) in faults.iter().zip(starts) {
        assert!(fault.starts_with(start), "{fault}");
    }
}

#[test]
fn malformed_toml_is_reported_with_its_line() {
    let faults = faults_of(account(), "[server]\nopen = \n[log]\nslow = \"x\n");
    assert!(faults[0].starts_with("2: not TOML: "), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.starts_with("4: not TOML: ")), "{faults:?}");
    let twice = faults_of(account(), "[server]\nopen = true\nopen = true\n");
    assert!(twice[0].starts_with("3: not TOML: "), "{twice:?}");

    let folder = Folder::new();
    let file = folder.write("latin.toml", b"# one\n# \xe9\n");
    let faults = load(&account().with_file(&file)).unwrap_err().to_string();
    assert_eq!(faults, format!("{}:2: is not UTF-8 text; save the file as UTF-8", file.display()));
    let missing = load(&account().with_file("/nowhere.toml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere.toml: cannot be read: "), "{missing}");
}

#[test]
fn absurd_depth_is_a_fault_and_no_overflow() {
    let nested = "[".repeat(200_000);
    assert!(!faults_of(account(), &format!("[server]\nlisten = {nested}")).is_empty());
    assert!(!faults_of(account(), &format!("a{}= 1", ".a".repeat(200_000))).is_empty());
    assert!(load(&account().with_variable("INSIGHTS_GATEWAY_SERVER__LISTEN", nested)).is_err());
    let name = format!("INSIGHTS_GATEWAY_{}", "A__".repeat(50_000));
    assert!(load(&account().with_variable(name, "1")).is_err());
}
