//! `feature-gates`: etcd's named switches. Every known gate is accepted; what a gate means here stands in the table.

use super::value::{BadValue, parse_bool};

pub struct Gate {
    pub name: &'static str,
    pub default: bool,
    /// What setting it does in cairn.
    pub here: &'static str,
}

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
    Gate { name: "LeaseCheckpoint", default: false, here: "no effect: leases are not served" },
    Gate { name: "LeaseCheckpointPersist", default: false, here: "no effect: leases are not served" },
    Gate {
        name: "SetMemberLocalAddr",
        default: false,
        here: "no effect: peer connections leave from the address the kernel picks",
    },
    Gate { name: "FastLeaseKeepAlive", default: true, here: "no effect: leases are not served" },
    Gate { name: "PriorityRequest", default: false, here: "no effect: leases are not served" },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_gate_is_refused_with_the_nearest() {
        assert_eq!(parse("CompactHashCheck=true,AllBeta=false").unwrap().len(), 2);
        let message = parse("CompactHashChek=true").err().unwrap().0;
        assert!(message.contains("did you mean CompactHashCheck?"), "{message}");
    }
}
