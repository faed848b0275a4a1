//! The number of files and sockets that the system lets this process open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reserved for everything but client connections: listeners, the admin plane, upstream connections, files.
const OTHERS: u64 = 256;

/// Raises the limit as far as the process may, and returns how many connections fit below it. Systems start processes
/// with a low limit for old programs that cannot handle more; the higher limit may be used by others.
pub(super) fn connections() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some()
        && current != maximum
        && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err()
    {
        tracing::debug!("the limit of open files cannot be raised");
    }
    // No limit counts as the largest number.
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let others = OTHERS.min(allowed / 2);
    usize::try_from(allowed - others).unwrap_or(usize::MAX)
}
