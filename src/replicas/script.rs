//! The scripts that the store runs.

use std::sync::OnceLock;

use redis::Cmd;

/// A script in Lua. It is sent with every call, so it is sent without comments and indentation.
#[derive(Debug)]
pub(crate) struct LuaScript {
    parts: &'static [&'static str],
    text: OnceLock<String>,
}

impl LuaScript {
    /// A script of these parts. No string and no comment in it may be longer than a line.
    pub(crate) const fn of(parts: &'static [&'static str]) -> Self {
        Self { parts, text: OnceLock::new() }
    }

    /// What is sent.
    pub(crate) fn text(&self) -> &str {
        self.text.get_or_init(|| self.parts.iter().map(|part| stripped(part)).collect())
    }

    /// Its call, to which arguments may be added.
    pub(crate) fn call<K: redis::ToRedisArgs + Sync>(&self, keys: &[K]) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(self.text()).arg(keys.len()).arg(keys);
        command
    }
}

fn stripped(text: &str) -> String {
    debug_assert!(!text.contains("[["), "a string or comment that is longer than a line");
    let lines = text.lines().map(|line| without_comment(line).trim()).filter(|line| !line.is_empty());
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn without_comment(line: &str) -> &str {
    let (mut quote, mut bytes) = (None, line.bytes().enumerate().peekable());
    while let Some((at, byte)) = bytes.next() {
        match quote {
            Some(_) if byte == b'\\' => drop(bytes.next()),
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if matches!(byte, b'\'' | b'"') => quote = Some(byte),
            None if byte == b'-' && bytes.peek().is_some_and(|(_, next)| *next == b'-') => return &line[..at],
            None => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::test_server::TestServer;

    const LUA: &str = r#"
-- A comment: it's "gone".
local function join(a, b) return a .. b end -- So is this one.

  local found = { '--', "it's -- \"here\" --", '\'--', '\\' } -- '
  return join(table.concat(found, '-'), 5 - -3) --
"#;

    #[test]
    fn only_comments_and_indentation_are_left_out() {
        let kept = [
            "local function join(a, b) return a .. b end",
            r#"local found = { '--', "it's -- \"here\" --", '\'--', '\\' }"#,
            "return join(table.concat(found, '-'), 5 - -3)",
        ];
        assert_eq!(stripped(LUA), kept.map(|line| format!("{line}\n")).concat());
    }

    #[test]
    fn a_server_runs_what_is_left() {
        let Some(server) = TestServer::start() else { return };
        static LEFT: LuaScript = LuaScript::of(&[LUA]);
        let run = |mut call: Cmd| call.arg("an argument").query::<String>(&mut server.connection()).unwrap();
        let mut whole = redis::cmd("EVAL");
        whole.arg(LUA).arg(0);
        assert_eq!(run(LEFT.call::<&str>(&[])), run(whole));
    }
}
