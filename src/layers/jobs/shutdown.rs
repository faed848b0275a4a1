//! Tells waiting clients that the process is about to end.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

/// Tells when the process begins to shut down. Then no client is held any longer.
#[derive(Clone)]
pub struct Shutdown(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>);

impl Shutdown {
    /// What `begun` returns ends when the shutdown begins, or at once if it has begun.
    pub fn new(begun: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(begun))
    }

    pub(super) fn begun(&self) -> BoxFuture<'static, ()> {
        (self.0)()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}
