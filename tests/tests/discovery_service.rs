//! The discovery service of release binaries: real etcd members of two versions find each other through three members of cairn, of which
//! one is killed half-way; cairn's own members through the same service; and answers compared with those of a real etcd 3.4.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cairn_tests::harness::{Cluster, Kind, cairn_binary, etcdctl, wait_for};

const ON: &str = "--discovery-service=true";

/// One answer as bytes, without what differs from moment to moment.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(its, _)| its == name).map_or("", |(_, value)| value.as_str())
    }
}

/// Sends one request and reads to the end; a wait that nothing ends is cut after its head.
fn ask(base: &str, method: &str, path: &str, form: Option<&str>) -> Result<Answer> {
    let place = base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(place)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n");
    if let Some(form) = form {
        head.push_str("Content-Type: application/x-www-form-urlencoded\r\n");
        head.push_str(&format!("Content-Length: {}\r\n", form.len()));
    }
    write!(stream, "{head}\r\n{}", form.unwrap_or_default())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    read(&String::from_utf8_lossy(&bytes)).with_context(|| format!("{method} {path}"))
}

fn read(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let mut headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    headers.sort();
    let mut answer = Answer { status, headers, body: body.to_owned() };
    if answer.header("transfer-encoding") == "chunked" {
        let mut rest = body;
        answer.body.clear();
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16)?;
            answer.body.push_str(after.get(..size).context("a chunk cut short")?);
            rest = after.get(size + 2..).unwrap_or_default();
        }
    }
    Ok(answer)
}

/// Indexes from this one on are counted from it, so that two stores can be compared.
fn relative(text: &str, base: u64) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("ndex\":") {
        let (before, after) = rest.split_at(at + "ndex\":".len());
        out.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = after.split_at(digits);
        match number.parse::<u64>() {
            Ok(number) if number >= base => out.push_str(&format!("@{}", number - base)),
            _ => out.push_str(number),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Everything of an answer that a client of etcd 3.4 could see, in a form that two servers can have in common.
fn shown(answer: &Answer, base: u64) -> String {
    let mut text = format!("{}\n", answer.status);
    for (name, value) in &answer.headers {
        let value = match name.as_str() {
            "date" | "x-etcd-cluster-id" | "x-raft-index" | "x-raft-term" => "there".to_owned(),
            // Follows from the body, in which numbers have different lengths.
            "content-length" => continue,
            "x-etcd-index" => match value.parse::<u64>() {
                Ok(index) if index >= base => format!("@{}", index - base),
                _ => value.clone(),
            },
            _ => value.clone(),
        };
        text.push_str(&format!("{name}: {value}\n"));
    }
    text + "\n" + &relative(&answer.body, base)
}

/// `@3` in a path stands for the index of the third change after the first one.
const SEQUENCE: &[&str] = &[
    // The first change, which all indexes are counted from.
    "PUT /v2/keys/discovery/other/_config/size value=1",
    "GET /v2/keys/discovery/T/_config/size?quorum=false&recursive=false&sorted=false",
    "GET /v2/keys/discovery/T",
    "GET /v2/keys/discovery/T/a1",
    "PUT /v2/keys/discovery/T/_config/size value=5",
    "PUT /v2/keys/discovery/T/_config/size value=4",
    "GET /v2/keys/discovery/T/_config",
    "PUT /v2/keys/discovery/T/_config/size?prevExist=true value=3",
    "PUT /v2/keys/discovery/T/_config/size?prevExist=false value=3",
    "DELETE /v2/keys/discovery/T?recursive=true&force=true",
    "GET /v2/keys/discovery/T",
    "PUT /v2/keys/discovery/T/_config/size?prevExist=true value=3",
    "PUT /v2/keys/discovery/T/_config/size?prevExist=false value=4",
    "GET /v2/keys/discovery/T/_config/size?quorum=false&recursive=false&sorted=false",
    "GET /v2/keys/discovery/T?quorum=false&recursive=false&sorted=false",
    "GET /v2/keys/discovery/T?recursive=true",
    "GET /v2/keys/discovery/T/",
    "GET /v2/keys/discovery/T/_config",
    "HEAD /v2/keys/discovery/T",
    "HEAD /v2/keys/discovery/T/zz",
    "HEAD /v2/keys/discovery/T/zz?wait=true",
    "OPTIONS /v2/keys/discovery/T",
    "PATCH /v2/keys/discovery/T value=x",
    "PUT /v2/keys/discovery/T/a1?prevExist=true value=n1%3Dhttp%3A%2F%2Fn1%3A1",
    "PUT /v2/keys/discovery/T/a1?prevExist=false value=n1%3Dhttp%3A%2F%2F127.0.0.1%3A24011",
    "PUT /v2/keys/discovery/T/a1?prevExist=false value=n1%3Dhttp%3A%2F%2F127.0.0.1%3A24012",
    "GET /v2/keys/discovery/T/a1",
    "GET /v2/keys/discovery/T/%61%31",
    "GET /v2/keys/discovery/T/a1?recursive=false&wait=true&waitIndex=@6",
    "GET /v2/keys/discovery/T?recursive=true&wait=true&waitIndex=@6",
    "GET /v2/keys/discovery/T/a1/b",
    "GET /v2/keys/discovery/T/a1/b/c",
    "GET /v2/keys/discovery/T/zz/b",
    "PUT /v2/keys/discovery/T/a1/b value=x",
    "PUT /v2/keys/discovery/T value=x",
    "DELETE /v2/keys/discovery/T",
    "DELETE /v2/keys/discovery/T/zz",
    // Everything that JSON, or Go's form of it, escapes.
    "PUT /v2/keys/discovery/T/a2?prevExist=false value=n%26%3C%3E%22%5C%C3%A9%3Dhttp%3A%2F%2Fn2%3A1%2Cn%26%3C%3E%22%5C%C3%A9%3Dhttp%3A%2F%2Fn2%3A2",
    "GET /v2/keys/discovery/T?recursive=true&wait=true&waitIndex=@7",
    "PUT /v2/keys/discovery/T/a0?prevExist=false value=n0%3Dhttps%3A%2F%2F%5B%3A%3A1%5D%3A24001",
    "GET /v2/keys/discovery/T?sorted=true",
    "DELETE /v2/keys/discovery/T/a2?force=true",
    "GET /v2/keys/discovery/T?sorted=1",
    // Faults of the form, and which of two is told.
    "GET /v2/keys/discovery/T?wait=maybe",
    "GET /v2/keys/discovery/T?recursive",
    "GET /v2/keys/discovery/T?quorum=2",
    "GET /v2/keys/discovery/T?sorted=yes",
    "GET /v2/keys/discovery/T?stream=",
    "GET /v2/keys/discovery/T?wait=true&waitIndex=x",
    "GET /v2/keys/discovery/T?wait=true&waitIndex=-1",
    "GET /v2/keys/discovery/T?wait=true&waitIndex=%2B1",
    "GET /v2/keys/discovery/T?waitIndex=99999999999999999999999",
    "PUT /v2/keys/discovery/T/a3?prevExist=maybe value=x",
    "PUT /v2/keys/discovery/T/a3?wait=true value=x",
    "PUT /v2/keys/discovery/T/a3?prevValue= value=x",
    "PUT /v2/keys/discovery/T/a3?ttl=x value=x",
    "PUT /v2/keys/discovery/T/a3?dir=x value=x",
    "PUT /v2/keys/discovery/T/a3?refresh=x value=x",
    "PUT /v2/keys/discovery/T/a3?noValueOnSuccess=x value=x",
    "PUT /v2/keys/discovery/T/a3?prevIndex=x&recursive=x&ttl=x value=x",
    "PUT /v2/keys/discovery/T/a3?waitIndex=x&recursive=x value=x",
    "PUT /v2/keys/discovery/T/a3?recursive=x&sorted=x&wait=x&dir=x&quorum=x&stream=x value=x",
    "PUT /v2/keys/discovery/T/a3?dir=x&wait=x&stream=x value=x",
    "PUT /v2/keys/discovery/T/a3?wait=true&quorum=x value=x",
    "PUT /v2/keys/discovery/T/a3?wait=true&prevValue= value=x",
    "PUT /v2/keys/discovery/T/a3?prevExist=x&ttl=x&refresh=x&noValueOnSuccess=x value=x",
    "PUT /v2/keys/discovery/T/a3 value=%zz",
    "GET /v2/keys/foo",
    "GET /v2/keysx",
];

#[test]
fn answers_are_those_of_etcd_field_by_field() -> Result<()> {
    let cairn = Cluster::start_with(Kind::Cairn, 1, &[ON])?;
    let etcd = Cluster::start_with(Kind::Etcd("3.4".into()), 1, &["--enable-v2"])?;
    let mut bases = [0, 0];
    let mut differ = Vec::new();
    for request in SEQUENCE {
        let mut words = request.split(' ');
        let (method, path) = (words.next().context("a method")?, words.next().context("a path")?);
        let form = words.next();
        let mut both = Vec::new();
        for (base, cluster) in bases.iter_mut().zip([&cairn, &etcd]) {
            let path = match path.split_once('@') {
                Some((before, number)) => format!("{before}{}", *base + number.parse::<u64>()?),
                None => path.to_owned(),
            };
            let answer = ask(&cluster.members[0].client_url, method, &path, form)?;
            if *base == 0 {
                *base = answer.header("x-etcd-index").parse()?;
            }
            both.push(shown(&answer, *base));
        }
        if both[0] != both[1] {
            differ.push(format!("{request}\n--- cairn:\n{}\n--- etcd:\n{}", both[0], both[1]));
        }
    }
    ensure!(
        differ.is_empty(),
        "{} of {} answers differ\n{}",
        differ.len(),
        SEQUENCE.len(),
        differ.join("\n")
    );
    Ok(())
}

/// Members that list nobody, and look for each other in this way instead.
fn seekers(kinds: &[&str], way: &[String]) -> Result<Cluster> {
    let kind = |version: &str| if version.is_empty() { Kind::Cairn } else { Kind::Etcd(version.to_owned()) };
    let mut cluster = Cluster::prepare(kind(kinds[0]), kinds.len(), &[])?;
    for (member, version) in cluster.members.iter_mut().zip(kinds) {
        member.play(&kind(version))?;
        member.set_flags(|flags| {
            flags.retain(|flag| !flag.starts_with("--initial-cluster"));
            flags.extend(way.iter().cloned());
        });
    }
    Ok(cluster)
}

/// What one member is given, every other one has; and all are listed.
fn one_cluster(cluster: &Cluster) -> Result<()> {
    cluster.etcdctl("3.5", &["put", "found", "each other"])?;
    for member in &cluster.members {
        let read = etcdctl("3.5", &member.client_url, &["get", "found", "--print-value-only"])?;
        ensure!(String::from_utf8_lossy(&read.stdout).trim() == "each other", "{}: {read:?}", member.name);
    }
    let listed = cluster.etcdctl("3.5", &["member", "list"])?;
    let started = listed.lines().filter(|line| line.contains("started")).count();
    ensure!(started == cluster.members.len(), "{listed}");
    Ok(())
}

/// As `curl -X PUT <base>/new?size=3` prints it.
fn new_token(base: &str, size: usize) -> Result<String> {
    let made = ask(base, "PUT", &format!("/new?size={size}"), Some(""))?;
    ensure!(made.status == 200, "{made:?}");
    Ok(made.body)
}

/// Ids of whoever is registered, as the member with this URL tells them; none while it has no leader.
fn registered(url: &str) -> BTreeSet<String> {
    let Some((base, path)) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')) else {
        return BTreeSet::new();
    };
    let Ok(answer) = ask(&format!("http://{base}"), "GET", &format!("/{path}"), None) else {
        return BTreeSet::new();
    };
    let list: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let nodes = list["node"]["nodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter_map(|node| Some(node["key"].as_str()?.rsplit('/').next()?.to_owned())).collect()
}

fn wait_registered(url: &str, count: usize) -> Result<()> {
    wait_for(&format!("{count} registrations"), || (registered(url).len() == count).then_some(()))
}

fn cairnctl(endpoints: &str, args: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(cairn_binary("cairnctl")?)
        .arg(format!("--endpoints={endpoints}"))
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), text))
}

#[test]
fn members_of_real_etcd_find_each_other_while_a_member_of_the_service_dies() -> Result<()> {
    let mut service = Cluster::start_with(Kind::Cairn, 3, &[ON])?;
    let leader = service.wait_leader()?;
    let asked = service.members[(leader + 1) % 3].client_url.clone();
    let url = new_token(&service.members[(leader + 2) % 3].client_url, 3)?;
    let token = url.rsplit('/').next().context("a token")?.to_owned();
    // Made at one member, served by another.
    let url = format!("{asked}/{token}");
    let mut cluster = seekers(&["3.4", "3.5", "3.4"], &[format!("--discovery={url}")])?;
    cluster.members[0].spawn()?;
    wait_registered(&url, 1)?;
    // With a plain etcd as the service this burns the token: duplicate id.
    cluster.members[0].kill()?;
    service.members[leader].kill()?;
    for at in [1, 0] {
        cluster.members[at].spawn()?;
    }
    wait_registered(&url, 2)?;
    let (done, text) = cairnctl(&asked, &["discovery", "show", &url])?;
    ensure!(done && text.contains("2 of 3 registered, 1 missing"), "{text}");
    ensure!(text.contains("  m1  ") && text.contains("  m2  "), "{text}");
    service.members[leader].spawn()?;
    cluster.members[2].spawn()?;
    cluster.wait_healthy()?;
    one_cluster(&cluster)?;
    ensure!(registered(&url).len() == 3, "{:?}", registered(&url));
    // One too many is told before it registers.
    let mut late = seekers(&["3.5"], &[format!("--discovery={url}"), "--discovery-fallback=exit".into()])?;
    late.members[0].spawn()?;
    late.members[0].wait_exit()?;
    ensure!(late.members[0].log().contains("cluster is full"), "{}", late.members[0].log_tail());
    Ok(())
}

#[test]
fn members_of_cairn_find_each_other_by_either_protocol() -> Result<()> {
    let service = Cluster::start_with(Kind::Cairn, 1, &[ON])?;
    let base = service.members[0].client_url.clone();
    let (done, text) = cairnctl(&base, &["discovery", "new", "--size=2", "--lifetime=1h", "-w", "json"])?;
    ensure!(done && text.contains("warning: 2 members tolerate no more failures"), "{text}");
    let json = text.lines().find(|line| line.starts_with('{')).context("json")?;
    let made: serde_json::Value = serde_json::from_str(json)?;
    let (token, url) = (made["token"].as_str().context("token")?, made["discovery"].as_str().context("url")?);
    ensure!(url == format!("{base}/{token}"), "{text}");

    // The token in the words of v3, and one member that has it in the words of v2.
    let v3 = [format!("--discovery-token={token}"), format!("--discovery-endpoints={base}")];
    let mut cluster = seekers(&["", ""], &v3)?;
    cluster.members[0].spawn()?;
    wait_registered(url, 1)?;
    // A real etcd would find it, and found a cluster of another id.
    let mut other = seekers(&["3.5"], &[format!("--discovery={url}"), "--name=other".into()])?;
    other.members[0].spawn()?;
    let status = other.members[0].wait_exit()?;
    let told = other.members[0].log();
    ensure!(!status.success() && told.contains("registered through v3 discovery"), "{status}: {told}");
    cluster.members[1].spawn()?;
    cluster.wait_healthy()?;
    one_cluster(&cluster)?;
    drop(cluster);

    let url = new_token(&base, 2)?;
    let mut cluster = seekers(&["", ""], &[format!("--discovery={url}")])?;
    cluster.members[0].spawn()?;
    wait_registered(&url, 1)?;
    cluster.members[0].kill()?;
    for member in &mut cluster.members {
        member.spawn()?;
    }
    cluster.wait_healthy()?;
    one_cluster(&cluster)?;
    let (done, text) = cairnctl(&base, &["discovery", "show", "nobody"])?;
    ensure!(!done && text.contains("TOKEN_UNKNOWN"), "{text}");
    Ok(())
}
