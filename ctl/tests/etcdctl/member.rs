//! Membership: every change beside etcdctl on clusters that are equal but for the ids of new members, which depend on the clock.

use crate::tools::{Run, Server, Tool, real_etcd, run};

/// The id of the member with these peer URLs.
fn id_at(server: &Server, url: &str) -> String {
    let list = run(Tool::Etcdctl, &server.endpoint, &["member", "list"], b"").essence().0;
    let line = list.lines().find(|line| line.contains(url)).unwrap_or_else(|| panic!("no {url} in {list}"));
    line.split(',').next().expect("an id").to_owned()
}

/// The same with `id` (in hexadecimal, decimal, or as a protobuf number) told from others no more.
fn without(id: &str, run: &Run) -> (Vec<u8>, i32, Option<String>) {
    let number = u64::from_str_radix(id, 16).expect("an id");
    let mut varint = Vec::new();
    let mut rest = number;
    while rest >= 0x80 {
        varint.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    varint.push(rest as u8);
    let mut out = run.stdout.clone();
    let padded = format!("{number:16x}");
    for form in [padded.as_bytes(), id.as_bytes(), number.to_string().as_bytes(), &varint] {
        while let Some(at) = out.windows(form.len()).position(|window| window == form) {
            out.splice(at..at + form.len(), b"ID".iter().copied());
        }
    }
    let error = run.stderr.lines().find(|line| line.starts_with("Error: ")).map(str::to_owned);
    (out, run.code, error)
}

struct Twins {
    theirs: Server,
    ours: Server,
}

impl Twins {
    /// Adds a member with both tools, does `verbs` with it, and compares all outputs.
    ///
    /// Nobody is at `port`, so the member never starts. Ids come from URLs and seconds, and are never used again, hence other ports
    /// for other members.
    fn life_of_a_member(&self, format: &str, port: u16) {
        let both = |line: &[&str]| {
            (
                run(Tool::Etcdctl, &self.theirs.endpoint, line, b""),
                run(Tool::Cairnctl, &self.ours.endpoint, line, b""),
            )
        };
        // New ids are smaller or larger than that of the first member by chance.
        let number = |id: &str| u64::from_str_radix(id, 16).expect("an id");
        let anchor = number(&id_at(&self.ours, "n1"));
        let peer_urls = format!("--peer-urls=http://127.0.0.1:{port},http://127.0.0.1:{}", port + 1);
        let (theirs, ours) = both(&["member", "add", "n\"2", &peer_urls, "--learner", "-w", format]);
        assert_eq!((theirs.code, ours.code), (0, 0), "{theirs:?} {ours:?}");
        let url = format!(":{port},");
        let ids = (id_at(&self.theirs, &url), id_at(&self.ours, &url));
        let same = |verb: &str, (theirs, ours): (Run, Run)| {
            let (theirs_bare, ours_bare) = (without(&ids.0, &theirs), without(&ids.1, &ours));
            if format == "protobuf" {
                // Members are sorted by id and ids have varying lengths: the parts are compared, not their order.
                let sorted = |mut bytes: Vec<u8>| {
                    bytes.retain(|byte| byte.is_ascii_graphic());
                    bytes.sort_unstable();
                    bytes
                };
                let lengths = (theirs.stdout.len(), ours.stdout.len());
                assert_eq!((theirs.code, theirs_bare.2), (ours.code, ours_bare.2), "{verb}");
                if ids.0.len() == ids.1.len() && lengths.0 == lengths.1 {
                    let letters = (sorted(theirs_bare.0), sorted(ours_bare.0));
                    assert_eq!(letters.0, letters.1, "{verb} {theirs:?} {ours:?}");
                }
                return;
            }
            let text = |run: &(Vec<u8>, i32, Option<String>)| String::from_utf8_lossy(&run.0).into_owned();
            let order = |text: String| {
                // The members come in the order of their ids, which differs.
                let mut parts: Vec<String> =
                    text.split(['{', '[', ',', '"', '\n', '}', ']']).map(str::to_owned).collect();
                parts.sort();
                parts
            };
            let before = |id: &str| number(id) < anchor;
            if before(&ids.0) == before(&ids.1) {
                assert_eq!(text(&theirs_bare), text(&ours_bare), "{verb} -w {format}");
            }
            assert_eq!(order(text(&theirs_bare)), order(text(&ours_bare)), "{verb} -w {format}");
            assert_eq!((theirs.code, &theirs_bare.2), (ours.code, &ours_bare.2), "{verb} -w {format}");
        };
        same("add", (theirs, ours));
        let each = |rest: &dyn Fn(&str) -> Vec<String>| {
            let line =
                |id: &str| rest(id).into_iter().chain(["-w".into(), format.into()]).collect::<Vec<_>>();
            let go = |tool, server: &Server, id: &str| {
                let line = line(id);
                run(tool, &server.endpoint, &line.iter().map(String::as_str).collect::<Vec<_>>(), b"")
            };
            (go(Tool::Etcdctl, &self.theirs, &ids.0), go(Tool::Cairnctl, &self.ours, &ids.1))
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        same("promote", each(&|id| words(&["member", "promote", id])));
        same("list", each(&|_| words(&["member", "list"])));
        same("remove", each(&|id| words(&["member", "remove", id])));
        same("remove twice", each(&|id| words(&["member", "remove", id])));
        same("update gone", each(&|id| words(&["member", "update", id, "--peer-urls=http://127.0.0.1:4"])));
        same("promote gone", each(&|id| words(&["member", "promote", id])));
    }
}

#[test]
fn every_change_of_members_prints_the_same_bytes() {
    if real_etcd("every_change_of_members_prints_the_same_bytes").is_none() {
        return;
    }
    let twins = Twins { theirs: Server::start(), ours: Server::start() };
    for (format, port) in [("simple", 2), ("json", 4), ("protobuf", 6)] {
        twins.life_of_a_member(format, port);
    }
}

#[test]
fn a_member_that_moved_and_one_that_is_promoted_print_the_same_bytes() {
    if real_etcd("a_member_that_moved_and_one_that_is_promoted_print_the_same_bytes").is_none() {
        return;
    }
    let server = Server::start();
    let me = id_at(&server, "n1");
    for format in ["simple", "json", "protobuf", "json --hex", "simple --hex"] {
        for verb in ["update", "promote"] {
            let mut line = vec!["member", verb, &me];
            if verb == "update" {
                line.push("--peer-urls=http://127.0.0.1:1");
            }
            line.push("-w");
            line.extend(format.split(' '));
            let theirs = run(Tool::Etcdctl, &server.endpoint, &line, b"");
            let ours = run(Tool::Cairnctl, &server.endpoint, &line, b"");
            assert_eq!((&theirs.stdout, theirs.essence()), (&ours.stdout, ours.essence()), "{line:?}");
        }
    }
}

#[test]
fn bad_input_is_refused_in_the_same_words_before_any_call() {
    if real_etcd("bad_input_is_refused_in_the_same_words_before_any_call").is_none() {
        return;
    }
    let server = Server::start();
    for line in [
        "member add",
        "member add a",
        "member add a --peer-urls=",
        "member add a b --peer-urls=http://127.0.0.1:2",
        "member add a http://127.0.0.1:2",
        "member add a https://127.0.0.1:2 --learner",
        "member add a --peer-urls=http://127.0.0.1:2,foo",
        "member add a --peer-urls=http://127.0.0.1",
        "member add a --peer-urls=http://127.0.0.1:2/",
        "member add a --peer-urls=http://127.0.0.1:x",
        "member add a --peer-urls=http://::1:1",
        "member add a --peer-urls=http://127.0.0.1:2,",
        "member remove",
        "member remove x",
        "member remove 0x1",
        "member remove 1 2",
        "member remove 10000000000000000",
        "member update",
        "member update 1",
        "member update 1 --peer-urls=",
        "member update x --peer-urls=http://127.0.0.1:2",
        "member update 1 2 --peer-urls=http://127.0.0.1:2",
        "member update 1 --peer-urls=127.0.0.1:2",
        "member promote",
        "member promote x",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let theirs = run(Tool::Etcdctl, &server.endpoint, &words, b"");
        // Where nobody answers: a call would show.
        let ours = run(Tool::Cairnctl, "127.0.0.1:1", &words, b"");
        assert_eq!(theirs.essence(), ours.essence(), "{line}");
    }
    for line in ["member add a --peer-urls=http://127.0.0.1:2 -w fields", "member remove 1 -w table"] {
        let words: Vec<&str> = line.split(' ').collect();
        let ours = run(Tool::Cairnctl, "127.0.0.1:1", &words, b"");
        assert_eq!(ours.code, 4, "{line}: {ours:?}");
    }
}
