//! Reads a value, up to a length.

use redis::Cmd;

use super::script::LuaScript;

/// Keys: the value. Arguments: its greatest length. Returns the value, or nothing. A longer value is cut off at this
/// length, so that it does not open.
pub(super) static SCRIPT: LuaScript = LuaScript::of(&[r"
local value = redis.call('GETRANGE', KEYS[1], 0, ARGV[1])
return value ~= '' and value
"]);

/// The command that reads a value of this length at most.
pub(super) fn command(name: &str, longest: usize) -> Cmd {
    let mut command = SCRIPT.call(&[name]);
    command.arg(longest);
    command
}
