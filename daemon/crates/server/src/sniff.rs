//! Which protocol a connection speaks, told from its first bytes. HTTP/2 without TLS begins with a fixed preface that no HTTP/1.1
//! request can begin with, so at most 24 bytes decide, and mostly the first read does.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::{
    authority::{self, Look},
    pace::Pace,
};

/// What a client of HTTP/2 with prior knowledge sends first (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Read at once while the first head is looked at; a client's preface, settings and first request are smaller.
const HEAD_READ_BYTES: usize = 2048;

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
    let ready = seen[..length].to_vec();
    let held = (protocol == Protocol::Http2).then(Vec::new);
    Ok(Some((protocol, Prefixed { ready, next: 0, held, pace: Pace::default(), io: TokioIo::new(io) })))
}

/// A connection whose first bytes were looked at and are given back before the rest.
pub(crate) struct Prefixed<T> {
    ready: Vec<u8>,
    next: usize,
    /// HTTP/2: what arrived of the first request's head, until it is whole and was mended if it needed that.
    held: Option<Vec<u8>>,
    pace: Pace,
    io: TokioIo<T>,
}

impl<T: AsyncRead + Unpin> Prefixed<T> {
    /// Takes more bytes and passes on those that need no look. False at the end of the connection.
    fn look_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; HEAD_READ_BYTES];
        let mut arrived = ReadBuf::new(&mut bytes);
        ready!(Pin::new(self.io.inner_mut()).poll_read(cx, &mut arrived))?;
        let held = self.held.get_or_insert_default();
        held.extend_from_slice(arrived.filled());
        let over = arrived.filled().is_empty() || held.len() > authority::HELD_BACK_BYTES_MAX;
        match authority::mend(held) {
            Look::Incomplete(clear) if !over => self.ready = held.drain(..clear).collect(),
            _ => self.ready = self.held.take().unwrap_or_default(),
        }
        Poll::Ready(Ok(!arrived.filled().is_empty() || !self.ready.is_empty()))
    }
}

impl<T> Read for Prefixed<T>
where
    T: AsyncRead + Unpin,
    TokioIo<T>: Read + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.next < this.ready.len() {
                let count = (this.ready.len() - this.next).min(buffer.remaining());
                buffer.put_slice(&this.ready[this.next..this.next + count]);
                this.next += count;
                return Poll::Ready(Ok(()));
            }
            (this.ready, this.next) = (Vec::new(), 0);
            if this.held.is_none() {
                break;
            }
            if !ready!(this.look_on(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(this.pace.poll_turn(cx));
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        this.pace.read(read.is_ready());
        read
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
