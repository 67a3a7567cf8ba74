//! The end of a member, in order: leadership, clients, threads, state, identity file.

use std::{path::Path, time::Duration};

use node::{Fatal, Removal};
use tokio::{sync::oneshot, time::sleep};
use tracing::{error, info, warn};

use super::{Ended, Member, fatal, standing};
use crate::{
    announce,
    identity::{self, CleanStop, Keeper},
    refusal::Refusal,
    signals::{Request, Signals},
    systemd,
};

/// A removed member's last second: what it still owes leaves (the answer to who asked, the word to its successor as leader), as in etcd.
const REMOVED_GRACE: Duration = Duration::from_secs(1);

/// Longest wait of a removed member for the others to know: a hundred heartbeats. When nobody can be asked for so long, it goes all the same.
const REMOVED_WAIT: Duration = Duration::from_secs(10);

/// Ends the member, whatever the reason was. Removed: once the others know, the identity file says so too, so that no later start of this
/// directory talks to anybody, and this is also the refusal that is answered here. A member that is killed before that starts once more:
/// its log knows, and its vote may still be needed. A member that would go on in its own place does not when it is asked to stop meanwhile.
pub async fn stop(mut member: Member, ended: Ended, signals: &mut Signals) -> Result<(), Refusal> {
    let limit = member.shutdown_timeout;
    let goes_on = member.replaces_itself
        && matches!(&ended, Ended::Expelled(expelled) if expelled.verdict.means_lost_history());
    let outcome = match ended {
        Ended::Asked(signal) => {
            info!(signal, "{}", announce::STOPPING);
            Ok(())
        }
        Ended::Removed(removal) => {
            warn!(member = %member.id, "{}", announce::REMOVED);
            let handle = member.node.handle();
            let known = tokio::time::timeout(REMOVED_WAIT, handle.removal_is_known());
            tokio::select! {
                (known, ()) = async { tokio::join!(known, sleep(REMOVED_GRACE)) } => if known.is_err() {
                    warn!("nobody can be asked whether the others know that this member was removed");
                },
                _ = signals.next() => {}
            }
            drop(handle);
            let refusal = note_removal(&mut member.keeper, &removal, member.dir.path());
            systemd::refused(&refusal);
            Err(refusal)
        }
        Ended::Expelled(expelled) => {
            let handle = member.node.handle();
            let refusal = standing::expelled(&mut member.keeper, &handle, &expelled, member.dir.path());
            drop(handle);
            warn!(member = %member.id, verdict = expelled.verdict.name(), "{}", announce::EXPELLED);
            if !goes_on {
                systemd::refused(&refusal);
            }
            Err(refusal)
        }
    };
    match end(member, signals, limit, goes_on).await {
        // The identity file says what is lost, so the next start takes it up from there.
        Some(_) if goes_on => Ok(()),
        _ => outcome,
    }
}

/// Asked to stop while it waited for others.
pub fn stopped_early(signal: &'static str) {
    systemd::stopping("stopping: nothing runs yet", Duration::ZERO);
    info!(signal, "{}", announce::STOPPING);
    info!("{}", announce::STOPPED);
}

fn note_removal(keeper: &mut Keeper, removal: &Removal, data_dir: &Path) -> Refusal {
    let through = removal.asked_through.as_ref().map(|by| match by.name.as_str() {
        "" => by.id.to_string(),
        name => format!("{name} ({})", by.id),
    });
    if let Err(error) = keeper.removed(removal.position, through) {
        fatal(Fatal::Store(format!("write the identity file: {error}")));
    }
    identity::compare::removed(keeper.identity(), &data_dir.display().to_string())
}

/// Hands leadership over, drains clients, makes the state durable, and notes an orderly stop. A second signal or a used-up
/// `shutdown-timeout` ends the process at once, which the log survives.
///
/// `goes_on`: this is not the end of the process, since the member is about to take its own place; the first signal to stop is then no
/// second one. Answers the signal that was heard.
async fn end(member: Member, signals: &mut Signals, limit: Duration, goes_on: bool) -> Option<&'static str> {
    let mut asked = None;
    match goes_on {
        true => systemd::unwatched("history lost: taking this member apart before it is replaced"),
        false => systemd::stopping("stopping: handing leadership over", limit),
    }
    let (done, mut finished) = oneshot::channel();
    let taken_apart = std::thread::Builder::new().name("stop".into()).spawn(move || {
        take_apart(member, limit);
        let _ = done.send(());
    });
    if let Err(error) = taken_apart {
        error!(%error, "no thread for an orderly stop");
        return asked;
    }
    let deadline = sleep(limit);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            _ = &mut finished => {
                info!("{}", announce::STOPPED);
                return asked;
            }
            () = &mut deadline => {
                warn!(limit_ms = limit.as_millis() as u64, "the orderly stop took longer than shutdown-timeout: ending now");
                return asked;
            }
            request = signals.next() => if let Request::Stop(signal) = request {
                if goes_on && asked.is_none() {
                    asked = Some(signal);
                    systemd::stopping("stopping: this member is not replaced now", limit);
                    info!(signal, "{}", announce::STOPPING);
                    continue;
                }
                warn!(signal, "asked to stop again: ending now");
                return Some(signal);
            }
        }
    }
}

/// Leadership goes first, so that the cluster is led on while clients are sent away. Half of the time is for them: the rest of the stop has
/// the disk to wait for.
fn take_apart(member: Member, limit: Duration) {
    let Member { node, server, mut keeper, dir: _dir, .. } = member;
    node.hand_over();
    systemd::status("stopping: sending clients away");
    let drained = server.drain(limit / 2);
    if drained.cut_count > 0 {
        info!(connections = drained.cut_count, "connections were cut");
    }
    systemd::status("stopping: making the state durable");
    let handle = node.handle();
    node.stop();
    // What is applied is committed and on disk, so the log reaches at least here.
    let status = handle.node_status();
    let stop = CleanStop {
        last_index: status.applied.0,
        last_term: status.term.0,
        hard_state_term: status.term.0,
        commit: status.applied.0,
    };
    if let Err(error) = keeper.stopped(stop) {
        warn!(%error, "the orderly stop could not be noted");
    }
}
