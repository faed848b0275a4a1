//! Exit codes of the process. The numbers are those of `sysexits.h`.

/// Success.
pub const DONE: u8 = 0;
/// Not ready, refused, or no response. Only `health`, `status` and `query` use it.
pub const NOT_READY: u8 = 1;
/// Bad configuration or usage; nothing was started.
pub const USAGE: u8 = 64;
/// A failure of the gateway itself or of the machine.
pub const INTERNAL: u8 = 70;
/// A listener could not be bound.
pub const CANNOT_BIND: u8 = 74;
