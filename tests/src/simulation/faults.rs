//! What goes wrong: the network, crashes, slow disks. And how it ends.

use consensus::io::{Input, Role};
use rand::Rng;
use types::MemberId;

use super::TICK;
use super::member::Member;
use super::network::Weather;
use super::world::{Event, World};

impl World {
    pub(super) fn fault(&mut self) {
        match self.rng.random_range(0..11) {
            10 => self.depose(),
            0..4 => {
                let members: Vec<u64> = self.members.keys().copied().collect();
                self.network.partition(&mut self.rng, &members);
                self.network.weather = Weather::draw(&mut self.rng);
                let (cut, weather) = (self.network.cut.clone(), self.network.weather);
                self.note(|| format!("network: cut {cut:?}, {weather:?}"));
            }
            4..7 => {
                let Some(id) = self.pick_running() else { return };
                self.crash(id);
            }
            7 => {
                for id in self.members.keys().copied().collect::<Vec<_>>() {
                    if self.rng.random_bool(0.7) {
                        self.crash(id);
                    }
                }
            }
            8 => {
                self.slow_disk = self.pick_running();
                self.slow_hub = self.pick_running();
            }
            _ => self.slow_apply = self.pick_running(),
        }
    }

    /// A leader hands over and is cut off before it hears of it: for a while it believes that it leads.
    fn depose(&mut self) {
        let leads = |member: &&Member| {
            member.disk.lineage == 0
                && member.running.as_ref().is_some_and(|running| running.core.status().role == Role::Leader)
        };
        let Some(leader) = self.members.values().find(leads).map(|member| member.id) else { return };
        let Some(to) = self.pick_running().filter(|to| *to != leader) else { return };
        self.network.weather = Weather::FINE;
        self.network.cut.clear();
        self.input(leader, Input::TransferLeader(MemberId(to)));
        let pause = self.rng.random_range(1..40);
        self.at(pause, Event::CutOff(leader));
        self.note(|| format!("{leader} hands over to {to} and is cut off"));
    }

    pub(super) fn cut_off(&mut self, id: u64) {
        if !self.calm {
            for other in self.members.keys().filter(|other| **other != id) {
                self.network.cut.extend([(id, *other), (*other, id)]);
            }
        }
    }

    pub(super) fn crash(&mut self, id: u64) {
        let survive = self.rng.random_range(0..4);
        let unsynced = self.rng.random_bool(0.5);
        let Some(member) = self.members.get_mut(&id).filter(|member| member.running.is_some()) else {
            return;
        };
        member.crash(survive, unsynced);
        if self.setup.damage {
            self.sessions_end(id);
        }
        self.outcome.crashes += 1;
        self.note(|| format!("{id} crashes; {survive} unconfirmed writes survive"));
        let pause = self.rng.random_range(1..30 * TICK);
        self.at(pause, Event::Start(id));
    }

    /// Fine weather from here on: everybody runs, everybody is heard.
    pub(super) fn heal(&mut self) {
        self.calm = true;
        self.calm_since = self.now;
        self.acknowledged_before = self.acknowledged.count();
        self.network.weather = Weather::FINE;
        self.network.cut.clear();
        self.slow_disk = None;
        self.slow_apply = None;
        self.slow_hub = None;
        self.note(|| "all is well from here on".into());
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.at(1, Event::Start(id));
        }
    }
}
