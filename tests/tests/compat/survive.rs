//! Stock clients of two languages keep a lease alive and a watch open while the leader is killed: the key with the lease is there all
//! the time, and every event comes, once and in order.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, ensure};
use cairn_tests::harness::{Cluster, Kind, wait_for};
use serde_json::Value;

use crate::{installed, python};

/// A client at work, and what it said so far.
struct Client {
    child: Child,
    said: Arc<Mutex<Vec<Value>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    fn start(mut command: Command) -> Result<Client> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = said.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sink.lock().expect("nobody panicked").push(value);
            }
        });
        Ok(Client { child, said, reader: Some(reader) })
    }

    fn said(&self) -> Vec<Value> {
        self.said.lock().expect("nobody panicked").clone()
    }

    fn count(&self, field: &str) -> usize {
        self.said().iter().filter(|value| !value[field].is_null()).count()
    }

    fn wait(&self, what: &str, goal: usize) -> Result<()> {
        let waited = wait_for(what, || (self.count(what) >= goal).then_some(()));
        waited.with_context(|| {
            let said = self.said();
            format!("the client said last: {:?}", &said[said.len().saturating_sub(8)..])
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn survives(name: &str, command: impl Fn(&str) -> Result<Command>) -> Result<()> {
    let kind = std::env::var("CAIRN_TESTS_KIND").map_or(Kind::Cairn, Kind::Etcd);
    let mut cluster = Cluster::start(kind, 3)?;
    let leader = cluster.wait_leader()?;
    // Any but the leader comes first, for clients that know one endpoint only.
    let order: Vec<String> = (1..=3)
        .map(|step| cluster.members[(leader + step) % 3].client_url.trim_start_matches("http://").to_owned())
        .collect();
    let mut client = Client::start(command(&order.join(","))?)?;
    client.wait("ready", 1)?;
    let mut put = 0;
    let mut write = |cluster: &Cluster, more: usize| -> Result<()> {
        for _ in 0..more {
            put += 1;
            let (key, value) = (format!("watched/{}", put % 3), put.to_string());
            // Each once: a write that failed may have been done all the same.
            cluster.etcdctl("3.5", &["put", &key, &value])?;
        }
        Ok(())
    };
    write(&cluster, 5)?;
    client.wait("event", 5)?;
    cluster.members[leader].kill()?;
    cluster.wait_leader()?;
    write(&cluster, 5)?;
    client.wait("event", 10)?;
    // Longer than the TTL of 6 s without the old leader.
    let renewed = client.count("renewed");
    client.wait("renewed", renewed + 25)?;
    cluster.members[leader].spawn()?;
    cluster.wait_healthy()?;
    write(&cluster, 5)?;
    client.wait("event", 15)?;
    drop(client.child.stdin.take());
    client.wait("end", 1)?;

    let said = client.said();
    let values: Vec<&str> = said
        .iter()
        .filter(|value| !value["event"].is_null())
        .filter_map(|value| value["value"].as_str())
        .collect();
    let expected: Vec<String> = (1..=15).map(|number| number.to_string()).collect();
    ensure!(values == expected, "{name} saw {values:?}");
    let ready = said.iter().find(|value| !value["ready"].is_null()).context("it was ready")?;
    let end = said.iter().find(|value| !value["end"].is_null()).context("it ended")?;
    ensure!(end["value"] == "yes", "{name}: the key is gone: {end}");
    ensure!(end["lease"] == ready["lease"], "{name}: another lease: {end}, {ready}");
    ensure!(client.count("lost") == 0, "{name} lost its lease");
    println!("{name}: {} renewals, {} failed", client.count("renewed"), client.count("failed"));
    Ok(())
}

#[test]
fn python_client_survives_the_leader() -> Result<()> {
    let (python, script) = (python()?, installed("tests/compat/survive.py")?);
    survives("the Python client", |endpoints| {
        let mut command = Command::new(&python);
        command.arg(&script).arg(endpoints);
        Ok(command)
    })
}

#[test]
fn node_client_survives_the_leader() -> Result<()> {
    let modules = installed("target/clients/node/node_modules")?;
    let script = installed("tests/compat/survive.js")?;
    survives("the Node.js client", |endpoints| {
        let mut command = Command::new("node");
        command.env("NODE_PATH", &modules).arg(&script).arg(endpoints);
        Ok(command)
    })
}
