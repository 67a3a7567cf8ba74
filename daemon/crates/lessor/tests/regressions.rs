//! What went wrong elsewhere, as stories of one leader with a clock in its hand.

use ::lessor::{Config, Lessor, Mono, Now, Phase, Renewal, Revoked};
use types::{LeaseId, Term};

const MS: u64 = 1_000_000;
const LEASE: LeaseId = LeaseId(7);

/// A leader whose every moment is confirmed unless the story says otherwise; looked at each 100 ms.
struct Leader {
    lessor: Lessor,
    at_ms: u64,
    confirmed: bool,
    over: Vec<LeaseId>,
    rests: Vec<(LeaseId, i64)>,
    cleared: Vec<LeaseId>,
}

impl Leader {
    fn new() -> Leader {
        Leader::with_checkpoints(None)
    }

    fn with_checkpoints(checkpoint_interval_ms: Option<u64>) -> Leader {
        let config = Config { election_timeout: 1000 * MS, checkpoint_interval_ms, ttl_min: 2, seed: [1, 2] };
        let mut leader = Leader {
            lessor: Lessor::new(config),
            at_ms: 0,
            confirmed: true,
            over: vec![],
            rests: vec![],
            cleared: vec![],
        };
        leader.takes_over(2, &[]);
        leader
    }

    fn takes_over(&mut self, term: u64, leases: &[(i64, i64, i64)]) {
        self.look();
        self.lessor.begin(Term(term), self.now());
        for (id, ttl, remaining) in leases {
            self.lessor.load(LeaseId(*id), *ttl, *remaining);
        }
        self.lessor.promoted();
        self.look();
    }

    fn now(&self) -> Now {
        Now { at: Mono(self.at_ms * MS), sole: false }
    }

    fn look(&mut self) {
        if self.confirmed {
            self.lessor.confirm(Mono(self.at_ms * MS), self.now());
        }
        while self.lessor.turn(self.now(), 100) {}
        self.lessor.expire(self.now(), usize::MAX, &mut self.over);
        self.rests.extend(self.lessor.take_checkpoints(self.now(), 1000));
        self.cleared.extend(self.lessor.take_clearings(1000));
    }

    fn run_to(&mut self, ms: u64) {
        while self.at_ms < ms {
            self.at_ms = ms.min(self.at_ms + 100);
            self.look();
        }
    }

    fn grant(&mut self, id: LeaseId, ttl: i64) {
        self.lessor.granted(id, ttl, self.now());
    }

    fn remaining_ms(&mut self, id: LeaseId) -> u64 {
        let now = self.now();
        self.lessor.lease(id, now).expect("the lease").remaining_ms
    }
}

#[test]
fn old_leader_cannot_revoke() {
    let mut leader = Leader::new();
    leader.grant(LEASE, 2);
    leader.run_to(1000);
    // From here on nobody answers its rounds: it cannot know whether another one leads.
    leader.confirmed = false;
    leader.run_to(60_000);
    assert_eq!(leader.over, []);
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Unconfirmed);
    // And once it does know, it has nothing left to decide.
    drop(leader.lessor.demote(leader.now()));
    leader.run_to(70_000);
    assert_eq!((leader.over.as_slice(), leader.lessor.phase()), ([].as_slice(), Phase::Idle));
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::NotPrimary);
}

#[test]
fn a_stalled_leader_does_not_expire_those_who_wait_in_its_sockets() {
    let mut leader = Leader::new();
    for id in 1..=1000 {
        leader.grant(LeaseId(id), 5);
    }
    leader.run_to(1000);
    leader.at_ms = 61_000;
    leader.look();
    assert_eq!(leader.over, [], "it was paused for a minute");
    // It resumes; within a second every keep-alive that waited is served.
    leader.run_to(61_900);
    for id in 1..=1000 {
        assert_eq!(leader.lessor.renew(LeaseId(id), leader.now()), Renewal::Renewed(5));
    }
    leader.run_to(66_800);
    assert_eq!(leader.over, []);
    leader.run_to(67_500);
    assert_eq!(leader.over.len(), 1000, "whoever stays away does end");
}

#[test]
fn a_lease_whose_time_runs_out_in_a_stall_may_still_be_renewed_after_it() {
    let mut leader = Leader::new();
    leader.grant(LEASE, 2);
    leader.run_to(1900);
    leader.at_ms = 20_000;
    leader.look();
    assert_eq!(leader.remaining_ms(LEASE), 0, "half a second of the stall counts");
    leader.run_to(20_800);
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Renewed(2));
    leader.run_to(22_700);
    assert_eq!(leader.over, []);
}

#[test]
fn checkpoint_survives_leader_change() {
    let mut leader = Leader::with_checkpoints(Some(300_000));
    leader.grant(LEASE, 1000);
    leader.grant(LeaseId(8), 200);
    leader.run_to(150_000);
    leader.lessor.renew(LeaseId(8), leader.now());
    leader.run_to(301_000);
    assert_eq!(
        leader.rests,
        [(LEASE, 700)],
        "the time that is left, each interval, of leases longer than it"
    );
    leader.lessor.checkpointed(LEASE, 700);
    leader.run_to(601_000);
    assert_eq!(leader.rests, [(LEASE, 700), (LEASE, 400)]);
    leader.lessor.checkpointed(LEASE, 400);

    // The next leader goes on from there: neither the whole time again, nor less.
    let mut next = Leader::with_checkpoints(Some(300_000));
    next.takes_over(3, &[(7, 1000, 400), (9, 100, 0)]);
    assert_eq!(next.remaining_ms(LEASE), 401_000, "and an election timeout");
    assert_eq!(next.remaining_ms(LeaseId(9)), 101_000);
    next.run_to(101_500);
    assert_eq!(next.over, [LeaseId(9)]);

    // A renewal is not answered before the record is gone: a third leader would cut it short.
    assert_eq!(next.lessor.renew(LEASE, next.now()), Renewal::Stale(1000));
    assert_eq!(next.lessor.renew(LEASE, next.now()), Renewal::Stale(1000));
    next.look();
    assert_eq!(next.cleared, [LEASE], "once");
    next.lessor.checkpointed(LEASE, 0);
    assert!(!next.lessor.is_stale(LEASE));
    assert_eq!(next.lessor.renew(LEASE, next.now()), Renewal::Renewed(1000));
    next.run_to(next.at_ms + 299_000);
    assert_eq!(next.rests, [], "whoever is kept alive costs nothing");
}

#[test]
fn keepalive_during_grant() {
    let mut leader = Leader::new();
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Unknown, "the caller waits for apply");
    leader.grant(LEASE, 30);
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Renewed(30));

    // The same while a new leader takes the table, whose copy may hold the lease already, or not yet.
    leader.lessor.begin(Term(3), leader.now());
    leader.grant(LeaseId(8), 20);
    assert_eq!(leader.lessor.renew(LeaseId(8), leader.now()), Renewal::NotPrimary, "it waits");
    leader.lessor.load(LeaseId(8), 20, 0);
    assert_eq!(leader.lessor.revoked(LEASE), Revoked::Unknown);
    leader.lessor.load(LEASE, 30, 0);
    leader.lessor.promoted();
    assert_eq!(leader.lessor.renew(LeaseId(8), leader.now()), Renewal::Renewed(20));
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Unknown, "it was revoked in between");
}

#[test]
fn no_success_for_revoked_lease() {
    let mut leader = Leader::new();
    leader.grant(LEASE, 2);
    leader.run_to(2500);
    assert_eq!(leader.over, [LEASE]);
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Over, "its revocation is on its way");
    // raft did not take it: then it is decided on again, and until then it may be saved.
    leader.lessor.refused(&[LEASE]);
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Renewed(2));
    leader.over.clear();
    leader.run_to(5000);
    assert_eq!(leader.over, [LEASE]);
    assert_eq!(leader.lessor.revoked(LEASE), Revoked::Expired);
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Unknown);
}

#[test]
fn keepalive_without_quorum_round() {
    let mut leader = Leader::new();
    leader.grant(LEASE, 10);
    leader.look();
    leader.confirmed = false;
    // One round lasts for an election timeout, however many ask.
    for _ in 0..100_000 {
        assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Renewed(10));
    }
    leader.at_ms += 999;
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Renewed(10));
    leader.at_ms += 1;
    assert_eq!(leader.lessor.renew(LEASE, leader.now()), Renewal::Unconfirmed);
}

#[test]
fn any_number_in_the_log_makes_a_lease_that_ends() {
    let mut leader = Leader::new();
    for (id, ttl) in [(i64::MIN, i64::MIN), (-1, 0), (i64::MAX, i64::MAX), (1, 9_000_000_000)] {
        leader.grant(LeaseId(id), ttl);
        leader.lessor.checkpointed(LeaseId(id), i64::MIN);
        assert!(matches!(leader.lessor.renew(LeaseId(id), leader.now()), Renewal::Renewed(2..)));
    }
    leader.lessor.checkpointed(LeaseId(5), 1);
    leader.run_to(3000);
    assert_eq!(leader.over, [LeaseId(i64::MIN), LeaseId(-1)]);
    leader.takes_over(3, &[(1, i64::MAX, i64::MAX), (2, i64::MIN, i64::MIN), (3, 5, i64::MAX)]);
    assert_eq!(leader.remaining_ms(LeaseId(3)), 6000, "no rest is longer than the whole");
}
