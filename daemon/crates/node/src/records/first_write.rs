//! The first write of a cluster waits until its life has a name that lasts: applied here, hence on the disks of a majority, and in the
//! identity file of the member that is asked. Otherwise a cluster whose disks were lost in its first moments could come to life once
//! more and take what was acknowledged for never written (identity design, section 4, step 6).
//!
//! Only in a cluster that begins: its founders wait for a leader that writes the life down. A leader that is an etcd never does, and one
//! that joined later only once everybody is there; nobody waits for those.

use std::sync::atomic::Ordering;

use types::MemberId;

use crate::{
    handle::Handle,
    shared::{Shared, ToRaft},
};

/// Whether writes may be taken, whoever leads. Once it is so it stays so.
pub(crate) fn is_begun(shared: &Shared) -> bool {
    let desk = &shared.records;
    let is_kept = || !desk.own.keeps_life || desk.kept.load(Ordering::Acquire);
    desk.own.config.is_none() || (desk.life.borrow().is_some() && is_kept())
}

/// Whether this leader is one that begins the life of the cluster.
pub(crate) fn is_begun_by(shared: &Shared, leader: MemberId) -> bool {
    if leader == shared.config.member {
        return true;
    }
    let Some(config) = &shared.records.own.config else { return false };
    let Some(member) = shared.reader().member(leader) else { return false };
    let is_first = |url| config.members.iter().any(|first| first.peer_urls.contains(url));
    // Whoever is connected has shown what it is before anything of it was heard.
    member.peer_urls.iter().any(is_first) && !shared.sentinel.refusals.is_unprotected(leader)
}

/// Whether members of etcd are among the first members. Such a one can add others without a life ever being told.
pub(crate) fn is_mixed_founding(shared: &Shared) -> bool {
    let Some(config) = &shared.records.own.config else { return false };
    let is_first = |url| config.members.iter().any(|first| first.peer_urls.contains(url));
    let members = shared.reader().members();
    members.iter().any(|member| {
        shared.sentinel.refusals.is_unprotected(member.id) && member.peer_urls.iter().any(is_first)
    })
}

impl Handle {
    /// The life of the cluster, as told by [`Handle::cluster_uuid`], is in the identity file: see [`crate::OwnIdentity::keeps_life`].
    pub fn life_is_kept(&self) {
        self.shared.records.kept.store(true, Ordering::Release);
        self.shared.raft.push(ToRaft::LifeIsKept);
    }
}
