//! How many files and sockets the system lets this process open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For everything that is no client's connection: listeners, the admin plane, upstream connections, files.
const OTHERS: u64 = 256;

/// Raises the limit as far as the process may, and says how many connections fit below it. Systems start processes with
/// a low limit for the sake of programs that cannot count further; the higher one that follows is meant for us.
pub(super) fn connections() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some()
        && current != maximum
        && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err()
    {
        tracing::debug!("the limit of open files cannot be raised");
    }
    // No limit is none.
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let others = OTHERS.min(allowed / 2);
    usize::try_from(allowed - others).unwrap_or(usize::MAX)
}
