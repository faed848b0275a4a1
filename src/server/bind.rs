//! Opening listeners: TCP, unix sockets, and sockets that another process has opened for this one.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::config::{Listen, Listener, Reach};
use crate::core::peer::Origin;

/// Connections that the kernel may queue before they are accepted; `net.core.somaxconn` may allow fewer.
const BACKLOG: u32 = 4096;

/// A listener that is open.
#[derive(Debug)]
pub struct Bound {
    // Declared first, so that it is dropped first: while the file exists, somebody must listen on the socket.
    _file: Option<SocketFile>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An accepted connection and the address that it comes from.
pub(super) enum Accepted {
    Tcp(TcpStream, Origin),
    Unix(UnixStream, Origin),
}

impl Bound {
    /// The address that it listens on, as the configuration writes it.
    pub fn address(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Socket::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or_else(|| "unix:?".into(), |path| format!("unix:{}", path.display()))
            }
        }
    }

    /// The TCP address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// The listener's address, and who can reach it.
    pub fn listener(&self) -> Listener {
        let reach = match &self.socket {
            Socket::Unix(_) => Reach::Unix,
            Socket::Tcp(listener) => listener.local_addr().map_or(Reach::Network, Reach::of),
        };
        Listener { address: self.address(), reach }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Best effort: without it small responses are slower, not wrong.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream, Origin::Tcp(address)))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let origin = match stream.peer_cred() {
                    Ok(owner) => Origin::Unix { uid: owner.uid(), pid: owner.pid() },
                    Err(_) => Origin::Unknown,
                };
                Ok(Accepted::Unix(stream, origin))
            }
        }
    }
}

/// A socket's file, which is removed with its listener.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode number: a file of the same name that another process has made must not be removed.
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inode: inode(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Another process may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Sockets that another process has opened for this one, by name.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, InheritedSocket)>);

/// One of [`Inherited`].
#[derive(Debug)]
pub enum InheritedSocket {
    /// Listens on TCP.
    Tcp(std::net::TcpListener),
    /// Listens on a unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Inherited {
    /// Adds a socket. Several may have the same name.
    pub fn add(&mut self, name: impl Into<String>, socket: InheritedSocket) {
        self.0.push((name.into(), socket));
    }

    /// The names of the sockets that no listener has taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn take(&mut self, name: &str) -> io::Result<Vec<Bound>> {
        let found: Vec<_> = self.0.extract_if(.., |(known, _)| known == name).collect();
        if found.is_empty() {
            let known = self.names().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(io::Error::other(format!(
                "systemd has handed over no socket of this name (others: {known}); \
                 give the socket unit FileDescriptorName={name} and start it before the service"
            )));
        }
        found.into_iter().map(|(_, socket)| take_over(socket)).collect()
    }
}

fn take_over(socket: InheritedSocket) -> io::Result<Bound> {
    let socket = match socket {
        InheritedSocket::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            Socket::Tcp(TcpListener::from_std(listener)?)
        }
        InheritedSocket::Unix(listener) => {
            listener.set_nonblocking(true)?;
            Socket::Unix(UnixListener::from_std(listener)?)
        }
    };
    // The file of an inherited socket, if it has one, belongs to the process that made it.
    Ok(Bound { _file: None, socket })
}

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", next_step(source, set_by))]
pub struct BindError {
    address: String,
    source: io::Error,
    set_by: &'static str,
}

impl BindError {
    /// The same, for an address that is set by this flag and key.
    #[must_use]
    pub fn set_by(self, set_by: &'static str) -> Self {
        Self { set_by, ..self }
    }
}

/// What to do about an address that cannot be opened and is set by `set_by`. The text continues a sentence.
fn next_step(error: &io::Error, set_by: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; another process listens there: stop that one, or choose another address with {set_by}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("; this machine has no such address: choose another with {set_by}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("; for a port below 1024 the process needs CAP_NET_BIND_SERVICE: choose another with {set_by}")
        }
        _ => String::new(),
    }
}

/// Opens what one entry of `server.listen` means: one listener, or all that were handed over under a name. Unix sockets
/// get the mode `unix_mode` before anyone can connect. `[::]` also takes IPv4, unless `all` (all entries) has an IPv4
/// address with the same port.
///
/// # Errors
///
/// When the address is in use or not an address of this host. A socket file that no process listens on is replaced; any
/// other file is not.
pub fn bind(
    listen: &Listen,
    all: &[Listen],
    unix_mode: u32,
    inherited: &mut Inherited,
) -> Result<Vec<Bound>, BindError> {
    let bound = match listen {
        Listen::Tcp(address) => {
            let is_ipv4_there = |other: &Listen| matches!(other, Listen::Tcp(other) if other.ip().to_canonical().is_ipv4() && other.port() == address.port());
            bind_tcp(*address, all.iter().any(is_ipv4_there)).map(|bound| vec![bound])
        }
        Listen::Unix(path) => bind_unix(path, unix_mode).map(|bound| vec![bound]),
        Listen::Systemd(name) => inherited.take(name),
    };
    bound.map_err(|source| {
        let address = match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Systemd(name) => format!("systemd:{name}"),
        };
        BindError { address, source, set_by: "server.listen" }
    })
}

fn bind_tcp(address: SocketAddr, is_ipv4_apart: bool) -> io::Result<Bound> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip() == Ipv6Addr::UNSPECIFIED && is_ipv4_apart {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // A restart must not wait for the last connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Bound { _file: None, socket: Socket::Tcp(socket.listen(BACKLOG)?) })
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<Bound> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        std::fs::remove_file(path)?;
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile::new(path)?;
    // No client can connect before `listen`, whatever the process's umask allows.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(Bound { _file: Some(file), socket: Socket::Unix(socket.listen(BACKLOG)?) })
}
