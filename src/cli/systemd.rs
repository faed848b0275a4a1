//! systemd, if it has started this process: sockets that it has opened (sd_listen_fds(3)), and notifications of the
//! gateway's state (sd_notify(3)). Otherwise this module does nothing.

use std::io;
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixDatagram;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::gateway::Milestone;
use crate::server::{Inherited, InheritedSocket};

/// The sockets that were handed over to this process, by their `FileDescriptorName`s. It removes the variables that
/// describe them from the environment, so it has to run before the gateway starts a thread. The allocator's thread
/// never reads the environment.
///
/// # Errors
///
/// When a socket was handed over that does not listen on TCP or a unix socket.
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
        // The name that sd_listen_fds_with_names(3) gives to sockets without one.
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
        let socket = match sockets.take_unix_listener(index) {
            Ok(socket) => socket.map(InheritedSocket::Unix),
            Err(_) => sockets.take_tcp_listener(index)?.map(InheritedSocket::Tcp),
        };
        if let Some(socket) = socket {
            if !does_listen(&socket)? {
                return Err(io::Error::other(format!(
                    "the socket {name} that was handed over does not listen; a socket unit needs ListenStream= and Accept=no"
                )));
            }
            inherited.add(name, socket);
        }
    }
    Ok(inherited)
}

/// A socket that is only bound, or that is a connection, is not noticed before it is used as a listener.
fn does_listen(socket: &InheritedSocket) -> io::Result<bool> {
    let does = match socket {
        InheritedSocket::Tcp(socket) => rustix::net::sockopt::socket_acceptconn(socket),
        InheritedSocket::Unix(socket) => rustix::net::sockopt::socket_acceptconn(socket),
    };
    Ok(does?)
}

/// Reports the gateway's state, as `Type=notify` and `Type=notify-reload` units expect.
pub(super) fn tell(milestone: Milestone) {
    let told = match milestone {
        Milestone::Ready => notify(&[NotifyState::Ready]),
        Milestone::Reloading => {
            NotifyState::monotonic_usec_now().and_then(|now| notify(&[NotifyState::Reloading, now]))
        }
        Milestone::Stopping => notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "cannot report the gateway's state to systemd");
    }
}

/// Sends `states` to the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if let Some(manager) = abstract_manager()? {
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        return manager.send(message.as_bytes()).map(drop);
    }
    sd_notify::notify(states)
}

/// The service manager's socket, where its name begins with `@`. Such a socket is in the abstract namespace
/// (sd_notify(3)), but sd-notify takes the name for a path.
#[cfg(target_os = "linux")]
fn abstract_manager() -> io::Result<Option<UnixDatagram>> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;

    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let Some(name) = name.as_bytes().strip_prefix(b"@") else { return Ok(None) };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
    Ok(Some(socket))
}
