//! The stream codecs under arbitrary use: what is written is read again however it is cut, and arbitrary bytes neither panic nor cost
//! more than the limit.

use api::raftpb::{ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata};
use bytes::{BufMut, Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use transport::codec::{Decoded, FrameError, decode_message, message, msgapp};
use types::MemberId;

const LIMIT: u64 = 1 << 20;

/// The smallest thing that reads either stream.
enum Reader {
    MsgApp(msgapp::Decoder),
    Message(message::Decoder),
}

impl Reader {
    fn both() -> [Reader; 2] {
        [Reader::msgapp(), Reader::Message(message::Decoder::new(LIMIT))]
    }

    fn msgapp() -> Reader {
        Reader::MsgApp(msgapp::Decoder::new(MemberId(1), MemberId(2), LIMIT))
    }

    /// Feeds pieces of these sizes in turn, and gathers what comes out.
    fn read(mut self, bytes: &Bytes, pieces: &[usize]) -> Result<Vec<Decoded>, FrameError> {
        let mut rest = bytes.clone();
        let mut found = Vec::new();
        let mut sizes = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(sizes.next().unwrap_or(usize::MAX).max(1)));
            match &mut self {
                Reader::MsgApp(decoder) => {
                    decoder.feed(piece);
                    while let Some(frame) = decoder.next_frame()? {
                        found.push(frame);
                    }
                }
                Reader::Message(decoder) => {
                    decoder.feed(piece);
                    while let Some(frame) = decoder.next_frame()? {
                        found.push(frame);
                    }
                }
            }
        }
        Ok(found)
    }
}

/// Memory that a decoded message holds beside itself.
fn footprint(message: &Message) -> u64 {
    let entries = message.entries.capacity() * size_of::<Entry>();
    let data: usize = message.entries.iter().map(|entry| entry.data.as_ref().map_or(0, Bytes::len)).sum();
    let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| {
        let conf = snapshot.metadata.as_ref().and_then(|metadata| metadata.conf_state.as_ref());
        let ids = conf.map_or(0, |conf| {
            [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next]
                .map(Vec::capacity)
                .iter()
                .sum::<usize>()
        });
        snapshot.data.as_ref().map_or(0, Bytes::len) + 8 * ids
    });
    (entries + data + snapshot + message.context.as_ref().map_or(0, Bytes::len)) as u64
}

fn entries(term: u64, after: u64, data: Vec<Vec<u8>>) -> Vec<Entry> {
    data.into_iter()
        .zip(after + 1..)
        .map(|(data, index)| Entry {
            r#type: Some(0),
            term: Some(term),
            index: Some(index),
            data: Some(data.into()),
        })
        .collect()
}

/// A leader's appends: mostly continuing, sometimes probing elsewhere or in a new term.
fn appends() -> impl Strategy<Value = Vec<Message>> {
    let one = (any::<bool>(), 1u64..4, 0u64..50, vec(vec(any::<u8>(), 0..40), 0..5), 0u64..60);
    vec(one, 1..30).prop_map(|steps| {
        let (mut term, mut index) = (0, 0);
        steps
            .into_iter()
            .map(|(jump, new_term, new_index, data, commit)| {
                let log_term = term;
                if jump {
                    (term, index) = (new_term, new_index);
                }
                let entries = entries(term, index, data);
                let message = Message {
                    r#type: Some(MessageType::MsgApp as i32),
                    to: Some(2),
                    from: Some(1),
                    term: Some(term),
                    log_term: Some(if jump { log_term } else { term }),
                    index: Some(index),
                    commit: Some(commit),
                    reject: Some(false),
                    reject_hint: Some(0),
                    entries,
                    ..Default::default()
                };
                index += message.entries.len() as u64;
                message
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn appends_survive_any_cutting(messages in appends(), pieces in vec(1usize..70, 1..20)) {
        let mut encoder = msgapp::Encoder::default();
        let mut out = BytesMut::new();
        for message in &messages {
            encoder.encode(message, &mut out);
            msgapp::Encoder::encode_heartbeat(&mut out);
        }
        let expected: Vec<_> =
            messages.iter().flat_map(|message| [Decoded::Message(message.clone()), Decoded::Heartbeat]).collect();
        prop_assert_eq!(Reader::msgapp().read(&out.freeze(), &pieces), Ok(expected));
    }

    #[test]
    fn messages_survive_any_cutting(messages in appends(), pieces in vec(1usize..70, 1..20)) {
        let mut out = BytesMut::new();
        message::encode_heartbeat(&mut out);
        for message in &messages {
            message::encode(message, &mut out);
        }
        let mut expected = vec![Decoded::Heartbeat];
        expected.extend(messages.into_iter().map(Decoded::Message));
        prop_assert_eq!(Reader::Message(message::Decoder::new(LIMIT)).read(&out.freeze(), &pieces), Ok(expected));
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..3000), pieces in vec(1usize..500, 1..5)) {
        for reader in Reader::both() {
            if let Ok(found) = reader.read(&bytes.clone().into(), &pieces) {
                for frame in found {
                    if let Decoded::Message(message) = frame {
                        prop_assert!(footprint(&message) <= LIMIT);
                    }
                }
            }
        }
    }

    /// Closer to the protocol than noise: a real stream with some bytes changed.
    #[test]
    fn damaged_streams_do_no_harm(
        messages in appends(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        pieces in vec(1usize..500, 1..5),
    ) {
        let mut encoder = msgapp::Encoder::default();
        let (mut appends, mut plain) = (BytesMut::new(), BytesMut::new());
        for message in &messages {
            encoder.encode(message, &mut appends);
            message::encode(message, &mut plain);
        }
        for (reader, mut bytes) in Reader::both().into_iter().zip([appends, plain]) {
            for (place, value) in &damage {
                let place = place.index(bytes.len());
                bytes[place] = *value;
            }
            if let Ok(found) = reader.read(&bytes.freeze(), &pieces) {
                for frame in found {
                    if let Decoded::Message(message) = frame {
                        prop_assert!(footprint(&message) <= LIMIT);
                    }
                }
            }
        }
    }
}

#[test]
fn two_bytes_on_the_wire_do_not_become_a_hundred_in_memory() {
    // Field 7, length 0: an entry without anything.
    let many: Bytes = [0x3a, 0].repeat(100_000).into();
    assert_eq!(decode_message(many, LIMIT), Err(FrameError::TooCostly { limit: LIMIT }));

    let conf_state = ConfState { voters: vec![1; 100_000], ..Default::default() };
    let metadata = SnapshotMetadata { conf_state: Some(conf_state), ..Default::default() };
    let snapshot = Snapshot { metadata: Some(metadata), ..Default::default() };
    let members = Message { snapshot: Some(snapshot), ..Default::default() }.encode_to_vec();
    assert_eq!(decode_message(members.into(), LIMIT), Err(FrameError::TooCostly { limit: LIMIT }));
}

#[test]
fn entries_without_content_are_charged_for_too() {
    let mut frame = BytesMut::new();
    frame.put_u8(1);
    frame.put_u64(100_000);
    frame.put_bytes(0, 8 * 100_000);
    assert!(matches!(Reader::msgapp().read(&frame.freeze(), &[4096]), Err(FrameError::TooLarge { .. })));
}

#[test]
fn messages_within_messages_do_not_travel() {
    let nested = Message { responses: vec![Message::default()], ..Default::default() };
    assert!(matches!(decode_message(nested.encode_to_vec().into(), LIMIT), Err(FrameError::Malformed(_))));
}

#[test]
fn an_unknown_frame_type_ends_the_stream() {
    assert_eq!(Reader::msgapp().read(&Bytes::from_static(&[0, 3]), &[1]), Err(FrameError::UnknownType(3)));
}
