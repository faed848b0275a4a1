//! systemd, where it is the one who starts us: sockets that it has opened (sd_listen_fds(3)), and word of how far we
//! are (sd_notify(3)). Elsewhere there is nothing to take over and nobody to tell.

use std::io;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::gateway::Milestone;
use crate::server::{Inherited, InheritedSocket};

/// The sockets that were handed over to this process, by their `FileDescriptorName`s. Takes the variables that told of
/// them out of the environment, so it has to come before the first thread of ours; the allocator's never looks there.
///
/// # Errors
///
/// When something was handed over that does not listen on TCP or a unix socket.
pub(super) fn inherited() -> io::Result<Inherited> {
    let mut inherited = Inherited::default();
    let is_ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(std::process::id()));
    if !is_ours {
        return Ok(inherited);
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut sockets = ListenFd::from_env();
    for index in 0..sockets.len() {
        // As sd_listen_fds_with_names(3) calls those without a name.
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
        let socket = match sockets.take_unix_listener(index) {
            Ok(socket) => socket.map(InheritedSocket::Unix),
            Err(_) => sockets.take_tcp_listener(index)?.map(InheritedSocket::Tcp),
        };
        if let Some(socket) = socket {
            inherited.add(name, socket);
        }
    }
    Ok(inherited)
}

/// Says how far the gateway is, as `Type=notify` and `Type=notify-reload` units want to know.
pub(super) fn tell(milestone: Milestone) {
    let told = match milestone {
        Milestone::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Milestone::Reloading => {
            NotifyState::monotonic_usec_now().and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]))
        }
        Milestone::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "cannot tell systemd how far the gateway is");
    }
}
