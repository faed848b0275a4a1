//! PROXY protocol, version 2: a load balancer states which client's connection it passes on.
//!
//! The header is read only from trusted proxies' connections, before anything else, TLS included. Version 1 is refused,
//! and so is a connection without a header: a proxy that is trusted to state an address must state one. Other fields of
//! a header (TLVs) are skipped. Source: the specification, "The PROXY protocol versions 1 & 2", 2.2.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and protocol, length.
const FIXED: usize = 16;

/// Longest part after the fixed one that is accepted. Addresses take 36 bytes at most. The rest are TLVs, of which
/// certificates are the largest.
const LONGEST_REST: usize = 4096;

/// Why a header is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// The stream ended, or cannot be read.
    #[error("the PROXY header cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The connection does not begin with a header.
    #[error("the connection does not begin with a PROXY protocol v2 header; enable that in the load balancer")]
    Missing,
    /// The header is malformed, or of a kind that is not supported.
    #[error("the PROXY header is malformed or not for a TCP connection")]
    Malformed,
}

/// Reads exactly the header. Returns the address that it states, or `None` where the proxy opened the connection for
/// itself.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let mut fixed = [0; FIXED];
    stream.read_exact(&mut fixed).await?;
    if fixed[..SIGNATURE.len()] != SIGNATURE {
        return Err(ProxyError::Missing);
    }
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > LONGEST_REST {
        return Err(ProxyError::Malformed);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    parse(fixed[12], fixed[13], &rest)
}

fn parse(version_and_command: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    match (version_and_command, family) {
        // LOCAL: the proxy's own connection, such as a health check. The specification says to ignore the rest.
        (0x20, _) => Ok(None),
        // PROXY of a connection that has no address.
        (0x21, 0x00) => Ok(None),
        (0x21, 0x11) => address::<4>(rest).map(|(ip, port)| Some((Ipv4Addr::from(ip), port).into())),
        (0x21, 0x21) => address::<16>(rest).map(|(ip, port)| Some((Ipv6Addr::from(ip), port).into())),
        // Datagrams, unix sockets, and unknown commands and versions.
        _ => Err(ProxyError::Malformed),
    }
}

/// The source of: source address, destination address, source port, destination port.
fn address<const N: usize>(rest: &[u8]) -> Result<([u8; N], u16), ProxyError> {
    let (source, rest) = rest.split_first_chunk::<N>().ok_or(ProxyError::Malformed)?;
    let (_, rest) = rest.split_first_chunk::<N>().ok_or(ProxyError::Malformed)?;
    let (ports, _) = rest.split_first_chunk::<4>().ok_or(ProxyError::Malformed)?;
    Ok((*source, u16::from_be_bytes([ports[0], ports[1]])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    const V4: &[u8] = &[192, 0, 2, 1, 127, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90];

    fn v6() -> Vec<u8> {
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("2001:db8::1".parse().unwrap(), Ipv6Addr::LOCALHOST);
        [&from.octets()[..], &to.octets(), &[0, 80, 0, 81]].concat()
    }

    async fn stated(bytes: &[u8]) -> Result<Option<String>, ProxyError> {
        read(&mut &*bytes).await.map(|address| address.map(|address| address.to_string()))
    }

    #[tokio::test]
    async fn the_source_is_read_and_nothing_after_the_header() {
        assert_eq!(stated(&header(0x21, 0x11, V4)).await.unwrap().unwrap(), "192.0.2.1:4711");
        assert_eq!(stated(&header(0x21, 0x21, &v6())).await.unwrap().unwrap(), "[2001:db8::1]:80");
        let with_tlv = [V4, &[4, 0, 1, 0]].concat();
        assert_eq!(stated(&header(0x21, 0x11, &with_tlv)).await.unwrap().unwrap(), "192.0.2.1:4711");
        let request = [&header(0x21, 0x11, V4)[..], b"GET /"].concat();
        let mut stream = &*request;
        read(&mut stream).await.unwrap();
        assert_eq!(stream, b"GET /");
    }

    #[tokio::test]
    async fn the_proxy_may_speak_for_itself() {
        assert_eq!(stated(&header(0x20, 0x00, b"")).await.unwrap(), None);
        assert_eq!(stated(&header(0x20, 0x11, V4)).await.unwrap(), None);
        assert_eq!(stated(&header(0x21, 0x00, b"")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        let refused: [&[u8]; 9] = [
            b"",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 8080\r\n",
            &header(0x21, 0x11, &V4[..11]),
            &header(0x21, 0x21, V4),
            &header(0x21, 0x12, V4),
            &header(0x11, 0x11, V4),
            &header(0x22, 0x11, V4),
            &header(0x21, 0x11, &[0; LONGEST_REST + 1]),
        ];
        for bytes in refused {
            assert!(stated(bytes).await.is_err(), "{bytes:?}");
        }
        let whole = header(0x21, 0x11, V4);
        for cut in 0..whole.len() {
            assert!(stated(&whole[..cut]).await.is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(rest in proptest::collection::vec(any::<u8>(), 0..64), command: u8, family: u8) {
            let _ = parse(command, family, &rest);
        }
    }
}
