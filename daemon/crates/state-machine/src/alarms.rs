//! Alarms that are raised, by member. Replicated, so that every member refuses alike. Not here: who decides to raise one.

use std::collections::BTreeSet;

use api::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction};
use prost::Message;

use crate::store::{Table, WriteBatch};

/// Raised alarms, ordered by member and kind so that every answer is the same everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Alarms {
    raised: BTreeSet<(u64, i32)>,
}

impl Alarms {
    pub fn load(rows: impl Iterator<Item = AlarmMember>) -> Alarms {
        Alarms { raised: rows.map(|row| (row.member_id, row.alarm)).collect() }
    }

    pub fn list(&self, kind: AlarmType) -> Vec<AlarmMember> {
        let wanted = |alarm: i32| kind == AlarmType::None || alarm == kind as i32;
        let raised = self.raised.iter().filter(|(_, alarm)| wanted(*alarm));
        raised.map(|(member_id, alarm)| AlarmMember { member_id: *member_id, alarm: *alarm }).collect()
    }

    pub fn has(&self, kind: AlarmType) -> bool {
        self.raised.iter().any(|(_, alarm)| *alarm == kind as i32)
    }

    /// Answers the alarms the response names. Raising twice, clearing what is not raised and kind NONE change nothing.
    pub fn apply(&mut self, request: &AlarmRequest, batch: &mut WriteBatch) -> Vec<AlarmMember> {
        let row = AlarmMember { member_id: request.member_id, alarm: request.alarm };
        let entry = (row.member_id, row.alarm);
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => match AlarmType::try_from(request.alarm) {
                Ok(kind) => self.list(kind),
                Err(_) => Vec::new(),
            },
            Ok(AlarmAction::Activate) if request.alarm != AlarmType::None as i32 => {
                if self.raised.insert(entry) {
                    batch.put(Table::Alarm, row.encode_to_vec(), Vec::new());
                }
                vec![row]
            }
            Ok(AlarmAction::Deactivate) if self.raised.remove(&entry) => {
                batch.delete(Table::Alarm, row.encode_to_vec());
                vec![row]
            }
            _ => Vec::new(),
        }
    }
}
