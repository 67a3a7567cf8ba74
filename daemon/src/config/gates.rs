//! `feature-gates`: etcd's named switches. Every known gate is accepted; what a gate means here stands in the table.

use super::value::{BadValue, parse_bool};

pub struct Gate {
    pub name: &'static str,
    pub default: bool,
    /// What setting it does in cairn.
    pub here: &'static str,
}

pub const LEASE_CHECKPOINT: &str = "LeaseCheckpoint";

pub const GATES: [Gate; 11] = [
    Gate { name: "AllAlpha", default: false, here: "sets every alpha gate that is not set by name" },
    Gate { name: "AllBeta", default: false, here: "sets every beta gate that is not set by name" },
    Gate {
        name: "StopGRPCServiceOnDefrag",
        default: false,
        here: "no effect: nothing here stops the service to defragment",
    },
    Gate {
        name: "TxnModeWriteWithSharedBuffer",
        default: true,
        here: "no effect: there is no such buffer to share",
    },
    Gate {
        name: "InitialCorruptCheck",
        default: false,
        here: "no effect: hashes are not compared with peers before serving; compare with `endpoint hashkv`",
    },
    Gate {
        name: "CompactHashCheck",
        default: false,
        here: "no effect: compaction hashes are not compared between members",
    },
    Gate {
        name: LEASE_CHECKPOINT,
        // Off in etcd: without it a lease of a day begins anew with every leader.
        default: true,
        here: "a leader writes the remaining time of long leases into the log every 5 minutes; on unless it is set to false",
    },
    Gate {
        name: "LeaseCheckpointPersist",
        default: true,
        here: "no effect: remaining time that is in the log is always persisted",
    },
    Gate {
        name: "SetMemberLocalAddr",
        default: false,
        here: "no effect: peer connections leave from the address the kernel picks",
    },
    Gate {
        name: "FastLeaseKeepAlive",
        default: true,
        here: "no effect: a keep-alive never waits for the log while the leader knows the lease",
    },
    Gate {
        name: "PriorityRequest",
        default: false,
        here: "no effect: keep-alives and expiry do not queue behind clients' requests",
    },
];

/// Gates that were named, in the order given; a repeated one counts last.
pub fn parse(text: &str) -> Result<Vec<(&'static Gate, bool)>, BadValue> {
    let mut set: Vec<(&'static Gate, bool)> = Vec::new();
    for item in super::value::parse_list(text) {
        let Some((name, value)) = item.split_once('=') else {
            return Err(BadValue(format!("{item:?} is not Name=true or Name=false")));
        };
        let (name, value) = (name.trim(), parse_bool(value.trim())?);
        let Some(gate) = GATES.iter().find(|gate| gate.name == name) else {
            let near = super::suggest::nearest(name, GATES.iter().map(|gate| gate.name));
            let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            return Err(BadValue(format!("no feature gate is called {name:?}{hint}")));
        };
        set.retain(|(earlier, _)| earlier.name != gate.name);
        set.push((gate, value));
    }
    Ok(set)
}

/// Whether a gate is on, by name or by default.
pub fn is_on(text: &str, name: &str) -> bool {
    let named = parse(text).unwrap_or_default();
    let set = named.iter().find(|(gate, _)| gate.name == name).map(|(_, set)| *set);
    set.unwrap_or_else(|| GATES.iter().any(|gate| gate.name == name && gate.default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_gate_is_refused_with_the_nearest() {
        assert_eq!(parse("CompactHashCheck=true,AllBeta=false").unwrap().len(), 2);
        let message = parse("CompactHashChek=true").err().unwrap().0;
        assert!(message.contains("did you mean CompactHashCheck?"), "{message}");
    }

    #[test]
    fn a_gate_is_as_it_was_named_last_or_else_as_by_default() {
        assert!(is_on("", LEASE_CHECKPOINT));
        assert!(is_on("AllBeta=false", LEASE_CHECKPOINT));
        assert!(!is_on("LeaseCheckpoint=true,LeaseCheckpoint=false", LEASE_CHECKPOINT));
        assert!(!is_on("", "InitialCorruptCheck"));
    }
}
