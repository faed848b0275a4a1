//! What the process says to whoever started it. The numbers are those of `sysexits.h`.

/// Done.
pub const DONE: u8 = 0;
/// The answer is no, or there is none. Only `health`, `status` and `query` say so.
pub const NOT_READY: u8 = 1;
/// Bad configuration or usage; nothing was started.
pub const USAGE: u8 = 64;
/// A fault of the gateway itself or of the machine under it.
pub const INTERNAL: u8 = 70;
/// A listener could not be bound.
pub const CANNOT_BIND: u8 = 74;
