//! Bytes between a connection and the machine that is kept on it.

use std::{
    mem::MaybeUninit,
    task::{Context, Poll},
    time::Instant,
};

use tokio::io::ReadBuf;

use crate::{session::now, stream::BoxStream};

/// Reads of one turn, after which others get theirs.
const READS: usize = 16;

/// A machine of one connection.
pub(crate) trait Machine {
    fn wants_read(&self) -> bool;
    fn received(&mut self, bytes: &[u8], now: Instant);
    fn end_of_stream(&mut self);
    fn broken(&mut self);
    fn wants_write(&self) -> bool;
    fn chunk(&mut self) -> &[u8];
    fn written(&mut self, bytes: usize, now: Instant);
}

/// Writes as much as the connection takes. `unflushed` is kept from call to call: TLS keeps what it encrypted until that is
/// flushed, which may take as long as a write.
pub(crate) fn write(
    stream: &mut BoxStream,
    machine: &mut impl Machine,
    unflushed: &mut bool,
    cx: &mut Context<'_>,
) {
    while machine.wants_write() {
        match stream.as_mut().poll_write(cx, machine.chunk()) {
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return machine.broken(),
            Poll::Ready(Ok(written)) => {
                *unflushed = true;
                machine.written(written, now());
            }
            Poll::Pending => {
                machine.written(0, now());
                break;
            }
        }
    }
    if *unflushed && let Poll::Ready(flushed) = stream.as_mut().poll_flush(cx) {
        *unflushed = false;
        if flushed.is_err() {
            machine.broken();
        }
    }
}

/// Reads what is there, `SIZE` bytes at once, from the stack: an idle connection has no buffer. Whether there may be more.
pub(crate) fn read<const SIZE: usize>(
    stream: &mut BoxStream,
    machine: &mut impl Machine,
    cx: &mut Context<'_>,
) -> bool {
    let mut scratch = [const { MaybeUninit::uninit() }; SIZE];
    for _ in 0..READS {
        if !machine.wants_read() {
            return false;
        }
        let mut buffer = ReadBuf::uninit(&mut scratch);
        match stream.as_mut().poll_read(cx, &mut buffer) {
            Poll::Pending => return false,
            Poll::Ready(Err(_)) => machine.broken(),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => machine.end_of_stream(),
            Poll::Ready(Ok(())) => machine.received(buffer.filled(), now()),
        }
    }
    true
}

macro_rules! machine {
    ([$($generic:tt)*] $machine:ty) => {
        impl<$($generic)*> $crate::pump::Machine for $machine {
            fn wants_read(&self) -> bool {
                self.wants_read()
            }
            fn received(&mut self, bytes: &[u8], now: std::time::Instant) {
                self.received(bytes, now);
            }
            fn end_of_stream(&mut self) {
                self.end_of_stream();
            }
            fn broken(&mut self) {
                self.broken();
            }
            fn wants_write(&self) -> bool {
                self.wants_write()
            }
            fn chunk(&mut self) -> &[u8] {
                self.chunk()
            }
            fn written(&mut self, bytes: usize, now: std::time::Instant) {
                self.written(bytes, now);
            }
        }
    };
}

machine!([] crate::proto::control::Machine);
machine!([W: crate::wire::channel::Words] crate::proto::channel::Machine<W>);
