//! Which protocol a connection speaks, told from its first bytes. HTTP/2 without TLS begins with a fixed preface that no HTTP/1.1
//! request can begin with, so at most 24 bytes decide, and mostly the first read does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a client of HTTP/2 with prior knowledge sends first (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is certain. None: the peer closed before. The caller bounds the time.
pub(crate) async fn sniff<T: AsyncRead + Unpin>(mut io: T) -> io::Result<Option<(Protocol, Prefixed<T>)>> {
    let mut seen = [0; PREFACE.len()];
    let mut length = 0;
    let protocol = loop {
        let read = io.read(&mut seen[length..]).await?;
        if read == 0 {
            return Ok(None);
        }
        length += read;
        if seen[..length] != PREFACE[..length] {
            break Protocol::Http1;
        }
        if length == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    let mut ready = seen[..length].to_vec();
    if protocol == Protocol::Http2 {
        hold_back_head(&mut io, &mut ready).await?;
    }
    Ok(Some((protocol, Prefixed { ready, next: 0, io: TokioIo::new(io) })))
}

/// Reads on until the first request's head is whole, so that it can be mended. A client that waits for our settings first would wait
/// for ever if nothing were passed on, so what has arrived goes on as it is when no more comes.
async fn hold_back_head<T: AsyncRead + Unpin>(io: &mut T, ready: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let looked = authority::mend(&mut ready[PREFACE.len()..]);
        if looked == Look::Done || ready.len() > authority::HELD_BACK_BYTES_MAX {
            return Ok(());
        }
        match tokio::time::timeout(HEAD_PATIENCE, io.read_buf(ready)).await {
            Ok(Ok(0)) | Err(_) => return Ok(()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// A connection whose first bytes were looked at and are given back before the rest.
pub(crate) struct Prefixed<T> {
    seen: [u8; PREFACE.len()],
    next: usize,
    length: usize,
    io: TokioIo<T>,
}

impl<T> Read for Prefixed<T>
where
    TokioIo<T>: Read + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.next < this.length {
            let count = (this.length - this.next).min(buffer.remaining());
            buffer.put_slice(&this.seen[this.next..this.next + count]);
            this.next += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(cx, buffer)
    }
}

impl<T> Write for Prefixed<T>
where
    TokioIo<T>: Write + Unpin,
{
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }
}
