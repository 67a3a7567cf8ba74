//! The v3 discovery protocol: keys below a prefix of a key-value service, read and written through its public API. Pure: which calls a
//! question is, and what their results say.

use api::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op, response_op,
};
use bytes::Bytes;

use super::{
    Registering,
    register::{Answer, Entry, Listed},
};

/// Where etcd's v3 discovery keeps its tokens, and cairn's service too.
const REGISTRY: &str = "/_etcd/registry";

/// The keys of one token.
#[derive(Clone, Debug)]
pub struct Keys {
    size: String,
    /// Ends with a slash.
    members: String,
}

impl Keys {
    pub fn of(token: &str) -> Keys {
        Keys {
            size: format!("{REGISTRY}/{token}/_config/size"),
            members: format!("{REGISTRY}/{token}/members/"),
        }
    }

    fn own(&self, own: &Registering) -> Bytes {
        format!("{}{}", self.members, own.member).into()
    }

    /// The first key behind those of the members: a slash, and one more.
    fn members_end(&self) -> Bytes {
        format!("{}0", self.members.trim_end_matches('/')).into()
    }

    pub fn size(&self) -> RangeRequest {
        RangeRequest { key: self.size.clone().into(), ..RangeRequest::default() }
    }

    pub fn list(&self) -> RangeRequest {
        RangeRequest {
            key: self.members.clone().into(),
            range_end: self.members_end(),
            ..RangeRequest::default()
        }
    }

    pub fn own_entry(&self, own: &Registering) -> RangeRequest {
        RangeRequest { key: self.own(own), ..RangeRequest::default() }
    }

    /// Writes unless somebody has; tells what stands there then.
    pub fn register(&self, own: &Registering) -> TxnRequest {
        let absent = Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Create as i32,
            key: self.own(own),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Compare::default()
        };
        let put = PutRequest { key: self.own(own), value: own.value.clone().into(), ..PutRequest::default() };
        TxnRequest {
            compare: vec![absent],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: vec![RequestOp {
                request: Some(request_op::Request::RequestRange(self.own_entry(own))),
            }],
        }
    }

    pub fn watch(&self, after: u64) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.members.clone().into(),
            range_end: self.members_end(),
            start_revision: i64::try_from(after).unwrap_or(i64::MAX - 1) + 1,
            ..WatchCreateRequest::default()
        }
    }

    pub fn read_size(&self, response: &RangeResponse) -> Answer {
        match response.kvs.first() {
            Some(kv) => Answer::Size(Some(text(&kv.value))),
            // An absent token and one without a size look alike.
            None => Answer::NoToken(format!("no key {}", self.size)),
        }
    }

    pub fn read_list(&self, response: &RangeResponse) -> Answer {
        let entries = response.kvs.iter().map(|kv| Entry {
            key: text(&kv.key).strip_prefix(&self.members).unwrap_or_default().to_owned(),
            value: text(&kv.value),
            created: number(kv.create_revision),
        });
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        Answer::Listed(Listed { entries: entries.collect(), at: number(revision) })
    }

    pub fn read_own(&self, response: &RangeResponse) -> Answer {
        Answer::OwnEntry(response.kvs.first().map(|kv| text(&kv.value)))
    }

    pub fn read_register(&self, response: &TxnResponse) -> Answer {
        if response.succeeded {
            return Answer::Registered;
        }
        let there = response.responses.iter().find_map(|op| match &op.response {
            Some(response_op::Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        });
        Answer::Taken(there.map(|kv| text(&kv.value)))
    }

    /// None: nothing worth an answer, listen on.
    pub fn read_watch(&self, response: &WatchResponse) -> Option<Answer> {
        if response.compact_revision > 0 {
            return Some(Answer::Forgotten);
        }
        if response.canceled {
            return Some(Answer::Lost(format!("the watch was cancelled: {}", response.cancel_reason)));
        }
        (!response.events.is_empty()).then_some(Answer::Event)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

/// What a failed call says.
pub fn failed(code: tonic::Code, message: &str) -> Answer {
    use tonic::Code;
    let shown = format!("{code:?}: {message}");
    match code {
        Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition | Code::InvalidArgument => {
            Answer::Rejected(shown)
        }
        // Something that speaks HTTP/2, but not this.
        Code::Unimplemented => Answer::NotDiscovery(shown),
        _ => Answer::Lost(shown),
    }
}

#[cfg(test)]
mod tests {
    use api::{etcdserverpb::ResponseHeader, mvccpb::KeyValue};
    use tonic::Code;

    use super::*;

    fn kv(key: &str, value: &str, create_revision: i64) -> KeyValue {
        KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision,
            ..KeyValue::default()
        }
    }

    #[test]
    fn keys_are_etcds() {
        let keys = Keys::of("T");
        assert_eq!(keys.size().key, "/_etcd/registry/T/_config/size");
        assert_eq!(
            (keys.list().key, keys.list().range_end),
            ("/_etcd/registry/T/members/".into(), "/_etcd/registry/T/members0".into())
        );
        assert_eq!(keys.watch(7).start_revision, 8);
    }

    #[test]
    fn results_say_what_they_mean() {
        let keys = Keys::of("T");
        let header = Some(ResponseHeader { revision: 12, ..ResponseHeader::default() });
        let list = RangeResponse {
            header,
            kvs: vec![kv("/_etcd/registry/T/members/5fb6", "n1=http://a:1", 9)],
            ..RangeResponse::default()
        };
        let Answer::Listed(listed) = keys.read_list(&list) else { panic!() };
        assert_eq!((listed.at, listed.entries[0].key.as_str(), listed.entries[0].created), (12, "5fb6", 9));
        let there = response_op::Response::ResponseRange(RangeResponse {
            kvs: vec![kv("k", "v", 1)],
            ..RangeResponse::default()
        });
        let conflict = TxnResponse {
            responses: vec![api::etcdserverpb::ResponseOp { response: Some(there) }],
            ..TxnResponse::default()
        };
        assert_eq!(keys.read_register(&conflict), Answer::Taken(Some("v".into())));
        assert_eq!(
            keys.read_register(&TxnResponse { succeeded: true, ..TxnResponse::default() }),
            Answer::Registered
        );
        let watch = |compact, canceled| WatchResponse {
            compact_revision: compact,
            canceled,
            ..WatchResponse::default()
        };
        assert_eq!(keys.read_watch(&watch(5, true)), Some(Answer::Forgotten));
        assert!(matches!(keys.read_watch(&watch(0, true)), Some(Answer::Lost(_))));
        assert_eq!(keys.read_watch(&watch(0, false)), None, "progress");
        assert!(matches!(failed(Code::PermissionDenied, "x"), Answer::Rejected(_)));
        assert!(matches!(failed(Code::Unimplemented, "x"), Answer::NotDiscovery(_)));
        for code in
            [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Internal, Code::Cancelled]
        {
            assert!(matches!(failed(code, "x"), Answer::Lost(_)), "{code:?}");
        }
    }
}
