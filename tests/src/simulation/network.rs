//! The network: it loses, repeats, delays and reorders, and members are cut off from each other, each direction on its own.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;

use super::Time;

#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub loss: f64,
    pub repeat: f64,
    /// Messages that arrive much later than all others.
    pub straggle: f64,
}

impl Weather {
    pub const FINE: Weather = Weather { loss: 0.0, repeat: 0.0, straggle: 0.0 };

    pub fn draw(rng: &mut StdRng) -> Weather {
        let chance = |rng: &mut StdRng, most: f64| {
            if rng.random_bool(0.5) { rng.random_range(0.0..most) } else { 0.0 }
        };
        Weather { loss: chance(rng, 0.3), repeat: chance(rng, 0.2), straggle: chance(rng, 0.1) }
    }
}

pub struct Network {
    pub weather: Weather,
    /// From, to.
    pub cut: BTreeSet<(u64, u64)>,
}

/// The longest usual way of a message; longer than a tick would be a slow network for these clocks.
const DELAY_MAX: Time = 25;
/// Stragglers come up to three election time-outs late.
const STRAGGLE_MAX: Time = 30 * super::TICK;

impl Network {
    /// When copies of a message from one to the other arrive; none when it is lost.
    pub fn route(&self, rng: &mut StdRng, from: u64, to: u64, may_repeat: bool) -> Vec<Time> {
        if self.cut.contains(&(from, to)) || rng.random_bool(self.weather.loss) {
            return Vec::new();
        }
        let copies = if may_repeat && rng.random_bool(self.weather.repeat) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                if rng.random_bool(self.weather.straggle) {
                    rng.random_range(DELAY_MAX..STRAGGLE_MAX)
                } else {
                    rng.random_range(1..DELAY_MAX)
                }
            })
            .collect()
    }

    /// Draws a new partition: none, one member alone, two halves, or one direction of one link.
    pub fn partition(&mut self, rng: &mut StdRng, members: &[u64]) {
        self.cut.clear();
        if members.len() < 2 {
            return;
        }
        let pick = |rng: &mut StdRng| members[rng.random_range(0..members.len())];
        match rng.random_range(0..5) {
            0 => {
                let alone = pick(rng);
                self.split(members, |member| member == alone);
            }
            1 => {
                let side: BTreeSet<u64> = members.iter().copied().filter(|_| rng.random_bool(0.5)).collect();
                self.split(members, |member| side.contains(&member));
            }
            2 => {
                let (a, b) = (pick(rng), pick(rng));
                self.cut.insert((a, b));
            }
            _ => {}
        }
    }

    fn split(&mut self, members: &[u64], on_one_side: impl Fn(u64) -> bool) {
        for a in members {
            for b in members {
                if on_one_side(*a) != on_one_side(*b) {
                    self.cut.insert((*a, *b));
                }
            }
        }
    }
}
