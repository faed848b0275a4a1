//! Counts the bytes of a connection below TLS: those of a handshake, and of an incomplete record, count like those of
//! an unfinished head.
//!
//! The TLS library keeps a handshake message until it is complete, and accepts one as large as a head. It keeps a
//! record likewise and delivers none of its bytes before the end, so a head inside it could stay unfinished without
//! being seen.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connections::{Connection, HeadShare};

/// Bytes before a record's payload (RFC 8446 section 5.1).
const RECORD_HEAD: usize = 5;

/// Follows the records.
#[derive(Debug, Default)]
struct Records {
    /// The bytes of the current record's head that have come.
    head: [u8; RECORD_HEAD],
    /// Bytes of the current record, its head included.
    come: usize,
}

impl Records {
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.come < RECORD_HEAD {
                let taken = (RECORD_HEAD - self.come).min(bytes.len());
                self.head[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
                (self.come, bytes) = (self.come + taken, &bytes[taken..]);
            } else {
                let taken = (self.length() - self.come).min(bytes.len());
                (self.come, bytes) = (self.come + taken, &bytes[taken..]);
            }
            if self.come >= RECORD_HEAD && self.come == self.length() {
                self.come = 0;
            }
        }
    }

    fn length(&self) -> usize {
        RECORD_HEAD + usize::from(u16::from_be_bytes([self.head[3], self.head[4]]))
    }
}

/// Counts what is read.
pub(super) struct Metered<T> {
    io: T,
    connection: Arc<Connection>,
    records: Records,
    /// Bytes so far, and the memory that is counted for them.
    handshake: Option<(usize, HeadShare)>,
    /// The first byte, if it was peeked at and not read yet.
    first: Option<u8>,
}

impl<T> Metered<T> {
    pub(super) fn new(io: T, connection: Arc<Connection>, share: HeadShare) -> Self {
        Self { io, connection, records: Records::default(), handshake: Some((0, share)), first: None }
    }

    /// Called at the end of the handshake. Of the bytes that came before, only an unfinished record still counts.
    pub(super) fn is_open(&mut self) {
        self.handshake = None;
        self.connection.has_sent_ciphertext(self.records.come, self.records.come);
    }
}

impl<T: AsyncRead + Unpin> Metered<T> {
    /// Peeks at the first byte of the connection. It is read again after this.
    pub(super) async fn first(&mut self) -> io::Result<u8> {
        let first = self.io.read_u8().await?;
        self.first = Some(first);
        Ok(first)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(first) = this.first.filter(|_| buffer.remaining() > 0) {
            this.first = None;
            this.records.follow(&[first]);
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        let come = &buffer.filled()[before..];
        if come.is_empty() {
            return read;
        }
        this.records.follow(come);
        match &mut this.handshake {
            None => this.connection.has_sent_ciphertext(come.len(), this.records.come),
            Some((bytes, share)) => {
                *bytes += come.len();
                if share.set(*bytes).is_err() {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
            }
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_record_is_found_however_the_bytes_are_split() {
        let record = |length: u16| [&[23, 3, 3][..], &length.to_be_bytes(), &vec![7; length.into()]].concat();
        let all = [record(10), record(0), record(300), record(1)].concat();
        for size in 1..all.len() {
            for cut in 0..=all.len() {
                let mut records = Records::default();
                all[..cut].chunks(size).for_each(|piece| records.follow(piece));
                let begins = [0, 15, 20, 325, 331].into_iter().rfind(|begins| *begins <= cut).unwrap();
                assert_eq!(records.come, cut - begins, "cut at {cut}, in pieces of {size}");
            }
        }
    }
}
