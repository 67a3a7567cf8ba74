//! Signals: the first request to stop is obeyed in order, the second at once; SIGHUP reads the log level again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Stop(&'static str),
    Reload,
}

pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on the process does not end by these signals by itself.
    fn listen() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The same for all starts of this process, made with the first that has something to wait for. Once it was made, signals do not end the
    /// process by themselves any more: what came while nobody waited is told to who waits next, in whatever runtime.
    pub fn of(process: &mut Option<Signals>) -> io::Result<&mut Signals> {
        match process {
            Some(signals) => Ok(signals),
            none => Ok(none.insert(Signals::listen()?)),
        }
    }

    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.interrupt.recv() => Request::Stop("SIGINT"),
            _ = self.terminate.recv() => Request::Stop("SIGTERM"),
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// As in a member that takes its own place: it waits within signals, makes itself ready for a second start, and waits again. SIGHUP, so
    /// that nothing depends on who else runs in this process.
    #[test]
    fn a_signal_between_two_starts_is_not_lost() {
        let mut process = None;
        runtime().block_on(async {
            Signals::of(&mut process).unwrap();
        });
        // A start that asks its peers has a runtime that takes the signal from the system, and nobody who waits for it there.
        runtime().block_on(async {
            let mut taken = signal(SignalKind::hangup()).unwrap();
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
            taken.recv().await;
        });
        let heard = runtime().block_on(async {
            let signals = Signals::of(&mut process).unwrap();
            tokio::time::timeout(Duration::from_secs(60), signals.next()).await
        });
        assert_eq!(heard, Ok(Request::Reload), "it came before the second start began to wait");
    }
}
