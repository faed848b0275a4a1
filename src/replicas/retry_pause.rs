//! How long what failed is not tried again.

use std::time::Duration;

/// The longest time.
const LONGEST: Duration = Duration::from_secs(1);

/// The time before the next attempt: at random, so that the replicas do not all come at once.
pub(super) fn random() -> Duration {
    LONGEST.mul_f64(0.25 + 0.75 * fastrand::f64())
}
