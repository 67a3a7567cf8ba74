//! One monotonic clock for all clients of a test, so that their observations can be compared.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
