//! Where secrets come from, and that none is printed.

use super::*;

#[test]
fn a_check_without_secrets_reads_none_and_finds_everything_else() {
    let folder = Folder::new();
    let (cert, _) = certificate(&folder);
    let account = "api_key = { env = 'NO' }\napi_secret = { file = '/nowhere/secret' }\n";
    let text = |more: &str| format!("[accounts.main]\naccount_sid = '{SID}'\n{account}{more}");
    let check = |text: &str| check_without_secrets(&Sources::default().with_file(folder.write("gateway.toml", text)));
    let tls = format!("[server]\ntls = {{ cert = '{}', key = '/nowhere/key' }}\n", cert.display());
    let proxy = "[upstream]\nproxy = { url = 'http://user@egress:1', password = { credential = 'egress' } }\n";
    let (record, warnings) = check(&text(&format!("{tls}{proxy}"))).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    for line in [
        "api_key = { env = \"NO\" } # masked",
        "api_secret = { file = \"/nowhere/secret\" } # masked",
        "proxy = { url = \"http://user@egress:1\", password = { credential = \"egress\" } } # masked",
    ] {
        assert!(record.show().contains(line), "{line}\n{}", record.show());
    }
    // Where the account comes from the environment, it may be unknown on this machine.
    let (_, warnings) = check("").unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.len() == 1 && warnings[0].contains("no account is known"), "{warnings:?}");
    for (more, part) in [
        ("[cache]\ncapacity = '1'", "cache.capacity: "),
        ("auth_token = { flie = 'x' }", "auth_token.flie: "),
        ("[teams.t]\naccount = 'mian'", "did you mean main?"),
        ("[upstream]\nca_file = '/nowhere'", "upstream.ca_file: this file cannot be read"),
    ] {
        let faults = check(&text(more)).unwrap_err().to_string();
        assert!(faults.contains(part), "{more}: {faults}");
    }
}

#[test]
fn secrets_come_from_files_variables_and_credentials() {
    let folder = Folder::new();
    let secret = folder.write("secret", format!("{SECRET}\r\n"));
    let text = |form: &str| format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = 'SK1'\napi_secret = {form}\n");
    let file = loaded(Sources::default(), &text(&format!("{{ file = '{}' }}", secret.display())));
    assert_eq!(file.accounts[0].secret.expose_secret(), SECRET);
    assert!(file.files.paths().contains(&secret) && file.files.paths().len() == 2);
    assert!(file.show().contains("# masked"));

    let sources = Sources::default().with_variable("CREDENTIALS_DIRECTORY", folder.0.path());
    let credential = loaded(sources, &text("{ credential = 'secret' }"));
    assert_eq!(credential.accounts[0].secret.expose_secret(), SECRET);
    assert!(credential.files.paths().contains(&secret));

    let literal = loaded(Sources::default(), &text(&format!("'{SECRET}'")));
    assert_eq!(literal.accounts[0].secret.expose_secret(), SECRET);
    assert!(literal.show().contains("api_secret = \"********\""));
    assert!(literal.warnings[0].contains(":4: accounts.main.api_secret: the secret itself is in the configuration"));
}

#[test]
fn careless_secret_files_are_faults_or_warnings() {
    let folder = Folder::new();
    let text = |path: &Path| {
        let form = format!("{{ file = '{}' }}", path.display());
        format!("[accounts.main]\naccount_sid = '{SID}'\nauth_token = {form}\n")
    };
    let careless = [
        ("empty", Vec::new(), "empty"),
        ("blank", b"\n".to_vec(), "empty"),
        ("spaces", b"  \n".to_vec(), "white space"),
        ("lines", b"a\nb\n".to_vec(), "byte 1, counted from 0, is a line end"),
        ("two ends", b"t0p5ee\n\n".to_vec(), "byte 6, counted from 0, is a line end"),
        ("bytes", vec![b'a', 0xff], "byte 1, counted from 0, is not ASCII"),
        ("mark", b"\xef\xbb\xbft0p5ee\n".to_vec(), "byte 0, counted from 0, is a byte order mark"),
        ("wide", b"\xff\xfes\0e\0".to_vec(), "UTF-16"),
        ("blank behind", b"t0p5ee \n".to_vec(), "byte 6, counted from 0, is a space"),
        ("blank before", b"\tt0p5ee".to_vec(), "byte 0, counted from 0, is a tab"),
        ("no-break", b"t0p\xc2\xa05ee".to_vec(), "byte 3, counted from 0, is a no-break space"),
        ("zero", b"t0p5ee\0".to_vec(), "byte 6, counted from 0, is a zero byte"),
        ("bare return", b"t0p5ee\r".to_vec(), "byte 6, counted from 0, is a line end"),
        ("umlaut", "t0\u{e4}p5ee".into(), "byte 2, counted from 0, is not ASCII"),
        ("large", vec![b'x'; (64 << 10) + 1], "larger than 64KiB"),
    ];
    for (name, content, part) in careless {
        let path = folder.write(name, content);
        let faults = faults_of(Sources::default(), &text(&path));
        assert!(faults.len() == 1 && faults[0].contains(part), "{name}: {faults:?}");
        assert!(!faults[0].contains("5ee"), "{name}: {faults:?}");
    }
    // The same holds for secrets from other places.
    for form in ["\"t0p5ee\\u00a0\"", "{ env = 'ODD' }"] {
        let text = format!("[accounts.main]\naccount_sid = '{SID}'\nauth_token = {form}\n");
        let faults = faults_of(Sources::default().with_variable("ODD", "t0p5ee\u{a0}"), &text);
        assert!(faults.len() == 1 && faults[0].contains("byte 6, counted from 0"), "{form}: {faults:?}");
    }
    let open = folder.write("open", SECRET);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let config = loaded(Sources::default(), &text(&open));
    assert!(config.warnings[0].contains("every user of this machine"), "{:?}", config.warnings);
}

#[test]
fn nothing_that_can_be_printed_holds_the_secret() {
    let sources = account().with_flag("accounts.other.auth_token", SECRET);
    assert!(!format!("{sources:?}").contains(SECRET));
    let config = load(&account()).unwrap();
    assert!(!format!("{config:?}").contains(SECRET));
    assert!(!config.show().contains(SECRET));
}

/// Keys of every type, so that a secret lands wherever a person could drop it.
fn any_key() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        ("server", "listen"),
        ("server", "open"),
        ("server", "drain"),
        ("server", "public_url"),
        ("server.tls", "cert"),
        ("admin", "listen"),
        ("admin", "token_sha256"),
        ("upstream", "url"),
        ("accounts.main", "account_sid"),
        ("accounts.main", "api_key"),
        ("accounts.main", "api_secret"),
        ("accounts.main", "rate"),
        ("accounts.main.api_secret", "file"),
        ("accounts.main.api_secret", "credential"),
        ("teams.t", "token_sha256"),
        ("teams.t", "operations"),
        ("teams.t.policy", "require"),
        ("retry", "attempts"),
        ("shared", "url"),
        ("shared", "username"),
        ("shared", "password"),
        ("shared", "seal"),
        ("shared", "prefix"),
        ("log", "format"),
        ("unknown", "key"),
    ])
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|(\\[?[a-z.]{0,9}\\]?( ?= ?[\"'\\[{a-z0-9]{0,5})?\n){0,9}") {
        let _ = faults_of(account(), &text);
    }

    #[test]
    fn arbitrary_variables_never_panic(name in "[A-Z_]{0,30}", value in "\\PC*") {
        let _ = load(&account().with_variable(format!("{PREFIX}{name}"), value));
    }

    #[test]
    fn a_planted_secret_is_never_in_a_fault((table, key) in any_key(), shape in 0usize..5) {
        let value = [
            format!("'{SECRET}'"),
            format!("['{SECRET}']"),
            format!("{{ env = '{SECRET}' }}"),
            format!("[{{ op = '{SECRET}', field = 'x', values = ['{SECRET}'] }}]"),
            format!("'http://u:{SECRET}@host/{SECRET}?{SECRET}'"),
        ];
        let text = format!("[{table}]\n{key} = {}\n", value[shape]);
        let faults = faults_of(Sources::default(), &text).join("\n");
        prop_assert!(!faults.contains(SECRET), "{}", faults);
        let broken = faults_of(Sources::default(), text.trim_end_matches(['\'', ']', '}', ' ', '\n'])).join("\n");
        prop_assert!(!broken.contains(SECRET), "{}", broken);
        let variable = format!("{PREFIX}{}__{}", table.replace('.', "__"), key).to_uppercase();
        let faults = load(&Sources::default().with_variable(variable, &value[shape][1..value[shape].len() - 1]));
        prop_assert!(!faults.map(|config| config.show()).unwrap_or_else(|f| f.to_string()).contains(SECRET));
    }
}
