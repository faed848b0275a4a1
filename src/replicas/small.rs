//! Finds a small value.

use redis::Cmd;

/// Keys: the value. Arguments: its greatest length. Returns it, or nothing. A value that is longer is cut off there, so that
/// it does not open.
const FIND: &str = r"
local value = redis.call('GETRANGE', KEYS[1], 0, ARGV[1])
return value ~= '' and value
";

/// Finds a value of this length at most.
pub(super) fn find(name: &str, longest: usize) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(FIND).arg(1).arg(name).arg(longest);
    command
}
