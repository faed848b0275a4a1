//! What a terminal shows.

use super::*;

/// Runs `query` on a terminal of this width, which `script` provides, and returns all its output.
async fn on_terminal(columns: usize, url: &str, words: &str, environment: &[(&str, &str)]) -> String {
    let binary = env!("CARGO_BIN_EXE_insights-gateway");
    let line = format!("stty cols {columns}; {binary} query --url {url} {words}");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    script.env("TERM", "xterm").env("SHELL", "/bin/sh").envs(environment.iter().copied()).stdin(Stdio::null());
    let Said { code, output, errors } = run(script).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{output:?}");
    output.replace("\r\n", "\n")
}

#[tokio::test]
async fn a_terminal_gets_its_width_and_a_bold_header_unless_it_wants_no_colour() {
    let rows = json!([{"C.Name": "a name that is longer than the screen is wide", "C.N": 5}]);
    let server = Upstream::script(move |_| page(&rows, None)).await;
    let asked = "--measure C.N --dimension C.Name";
    let shown = on_terminal(30, &server.url(), asked, &[]).await;
    let header = format!("{:<25}  {}", "C.Name", "C.N");
    let row = format!("{:<25}  {:>3}", "a name that is longer th…", 5);
    let remark = "insights-gateway: some values are cut; --format csv or json prints them in full";
    let rest = format!("{}  ---\n{row}\n{remark}\n", "-".repeat(25));
    assert_eq!(shown, format!("\u{1b}[1m{header}\u{1b}[0m\n{rest}"));
    let plain = on_terminal(30, &server.url(), asked, &[("NO_COLOR", "1")]).await;
    assert_eq!(plain, format!("{header}\n{rest}"));
}

#[tokio::test]
async fn no_value_controls_the_terminal_in_any_format() {
    let rows = json!([{"C.Name": "\u{1b}]0;title\u{7}\u{9b}2J\u{202e}x\r\n"}]);
    let server = Upstream::script(move |_| page(&rows, None)).await;
    for format in ["table", "csv", "json", "ndjson"] {
        let asked = format!("--dimension C.Name --format {format}");
        let shown = on_terminal(80, &server.url(), &asked, &[("NO_COLOR", "1")]).await;
        let odd = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!shown.contains(odd) && shown.contains("title"), "{format}: {shown:?}");
    }
}

#[tokio::test]
async fn a_terminal_shows_progress_and_then_only_the_table() {
    let server =
        Upstream::script(|seen| page(&json!([{"N": seen.number}]), ["a", "b"].get(seen.number - 1).copied())).await;
    let shown = on_terminal(80, &server.url(), "--measure N --all", &[("NO_COLOR", "1")]).await;
    assert!(shown.contains("] page 3, 2 rows so far\r\u{1b}[K"), "{shown:?}");
    assert!(shown.ends_with("\r\u{1b}[KN\n-\n1\n2\n3\n"), "{shown:?}");
}
