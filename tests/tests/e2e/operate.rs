//! An operator's day on one cluster: is it well, may this host be rebooted, who fills the store, what would this delete, what is wrong.

use anyhow::{Context, Result, ensure};
use cairn_tests::harness::{Cluster, Kind, cairn_binary, wait_for};
use serde_json::Value;
use std::process::{Command, Stdio};

struct Said {
    code: i32,
    out: String,
    complaint: String,
}

fn ctl(endpoints: &str, arguments: &[&str]) -> Result<Said> {
    let mut command = Command::new(cairn_binary("cairnctl")?);
    command.env_clear().env("CAIRNCTL_CONFIG_FILE", "/dev/null").env("CAIRNCTL_ENDPOINTS", endpoints);
    let output = command.args(arguments).stdin(Stdio::null()).output()?;
    Ok(Said {
        code: output.status.code().context("it ends by itself")?,
        out: String::from_utf8(output.stdout)?,
        complaint: String::from_utf8(output.stderr)?,
    })
}

/// Runs it until it ends so; elections and restarts take their time.
fn until(endpoints: &str, arguments: &[&str], code: i32, holds: impl Fn(&Said) -> bool) -> Result<Said> {
    wait_for(&format!("{arguments:?} with code {code}"), || {
        ctl(endpoints, arguments).ok().filter(|said| said.code == code && holds(said))
    })
}

fn json(said: &Said) -> Result<Value> {
    serde_json::from_str(&said.out).with_context(|| said.out.clone())
}

fn finds(said: &Said, id: &str) -> bool {
    let found = json(said).ok().and_then(|data| Some(data["findings"].as_array()?.clone()));
    found.unwrap_or_default().iter().any(|finding| finding["id"] == id)
}

#[test]
fn an_operator_sees_what_is_wrong_and_is_told_before_harm_is_done() -> Result<()> {
    let mut cluster = Cluster::start(Kind::Cairn, 3)?;
    let all = cluster.endpoints();
    let each: Vec<String> = cluster.members.iter().map(|member| member.client_url.clone()).collect();
    let names: Vec<String> = cluster.members.iter().map(|member| member.name.clone()).collect();

    // All is well.
    ensure!(ctl(&each[0], &["wait", "--for", "synced", "--cluster"])?.code == 0);
    let status = until(&all, &["status"], 0, |_| true)?;
    ensure!(status.out.contains("   healthy\n") && status.out.contains("1 more may fail"), "{}", status.out);
    let answer = until(&each[0], &["can-stop", "-o", "json"], 0, |_| true)?;
    ensure!(json(&answer)?["voters_up_without_it"] == 2, "{}", answer.out);
    ensure!(ctl(&all, &["can-stop"])?.code == 128, "several endpoints, and nobody named");

    // Two hosts that ask at the same time: one is told yes, the other who holds it, also without asking for it.
    let reserve = ["can-stop", "--reserve", "10m", "-o", "json"];
    let asked: Vec<Said> = std::thread::scope(|scope| {
        let asking: Vec<_> = each[..2].iter().map(|url| scope.spawn(|| ctl(url, &reserve))).collect();
        asking.into_iter().map(|asking| asking.join().expect("it does not panic")).collect::<Result<_>>()
    })?;
    let codes = [asked[0].code, asked[1].code];
    ensure!(codes == [0, 75] || codes == [75, 0], "{codes:?}: {} {}", asked[0].complaint, asked[1].complaint);
    let (holds, waits) = if codes[0] == 0 { (0, 1) } else { (1, 0) };
    ensure!(json(&asked[holds])?["reserved_seconds"] == 600, "{}", asked[holds].out);
    for (from, arguments) in
        [(waits, &["can-stop"][..]), (2, &["can-stop", "--reserve=10m"]), (2, &["can-stop"])]
    {
        let refused = ctl(&each[from], arguments)?;
        let complaint = refused.complaint;
        ensure!(refused.code == 75 && complaint.contains("[RESERVED]"), "{arguments:?}: {complaint}");
        ensure!(
            complaint.contains(&format!("({}) holds the key cairn/can-stop for another", names[holds])),
            "{complaint}"
        );
    }
    // Who holds it may ask again, and nobody else may end it by mistake. When it is back it says so.
    ensure!(ctl(&each[holds], &reserve)?.code == 0 && ctl(&each[holds], &["can-stop"])?.code == 0);
    let released = ctl(&each[waits], &["can-stop", "--release"])?;
    ensure!(released.code == 0 && released.out.ends_with(": it had no reservation\n"), "{}", released.out);
    let released = ctl(&each[waits], &["can-stop", "--release", &names[holds]])?;
    ensure!(
        released.code == 0 && released.out.ends_with(": its reservation has ended\n"),
        "{}",
        released.out
    );
    ensure!(ctl(&each[waits], &["can-stop"])?.code == 0);
    ensure!(ctl(&all, &["get", "cairn/", "--prefix"])?.out.is_empty(), "nothing of it stays");
    ensure!(ctl(&all, &["lease", "list"])?.out == "found 0 leases\n", "nor of those that were refused");

    // Who fills the store, and who watches: also when the watcher is at another member.
    for (key, value) in [("/a/1", "xx"), ("/a/2", "yyyy"), ("/b/1", "z")] {
        ensure!(ctl(&all, &["put", key, value])?.code == 0);
    }
    let mut watch = Command::new(cairn_binary("cairnctl")?)
        .env_clear()
        .env("CAIRNCTL_CONFIG_FILE", "/dev/null")
        .args(["--endpoints", &each[1], "watch", "/a/", "--prefix"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let watched = |said: &Said| json(said).is_ok_and(|data| data["prefixes"][0]["watchers"] == 1);
    let top = until(&each[0], &["top", "-o", "json", "--window", "10ms"], 0, watched);
    watch.kill()?;
    watch.wait()?;
    let top = json(&top?)?;
    let first = &top["prefixes"][0];
    ensure!(first["prefix"] == "/a/" && first["keys"] == 2 && first["bytes"] == 14, "{top}");
    ensure!(top["prefixes"][1]["prefix"] == "/b/" && top["keys_in_all"] == 3, "{top}");

    // A deletion is told first. On a terminal it is asked for, and no is the answer of whoever says nothing.
    let dry = ctl(&all, &["del", "/a/", "--prefix", "--dry-run"])?;
    ensure!(dry.out == "dry run: would delete 2 keys under \"/a/\"; nothing was changed\n", "{}", dry.out);
    for (answer, code, left) in [("\n", 1, 2), ("y\n", 0, 0)] {
        let line =
            format!("{} --endpoints {} del /a/ --prefix", cairn_binary("cairnctl")?.display(), each[0]);
        let mut terminal = Command::new("script");
        terminal
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("CAIRNCTL_CONFIG_FILE", "/dev/null");
        let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        std::io::Write::write_all(terminal.stdin.as_mut().context("piped")?, answer.as_bytes())?;
        let output = terminal.wait_with_output()?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(code), "{answer:?}: {}: {shown}", output.status);
        ensure!(
            shown.contains("will delete 2 keys under \"/a/\"") && shown.contains("Go on? [y/N]"),
            "{shown}"
        );
        let counted = ctl(&all, &["get", "/a/", "--prefix", "--count-only", "-w", "fields"])?;
        ensure!(counted.out.contains(&format!("\"Count\" : {left}\n")), "{}", counted.out);
    }

    // One is down: it serves, and nobody else may be stopped.
    cluster.members[2].kill()?;
    let status = until(&each[0], &["status", "-o", "json"], 11, |said| finds(said, "MEMBER_DOWN"))?;
    ensure!(json(&status)?["more_may_fail"] == 0, "{}", status.out);
    let refused = until(&each[0], &["can-stop"], 9, |_| true)?;
    ensure!(
        refused.complaint.contains("[CANNOT_STOP]") && refused.complaint.contains("1 too few"),
        "{}",
        refused.complaint
    );
    until(&each[0], &["can-stop", &names[2]], 0, |_| true)?;
    ensure!(ctl(&each[0], &["can-stop", "--reserve=10m"])?.code == 9, "a reservation is no permission");
    ensure!(ctl(&each[0], &["get", "cairn/", "--prefix"])?.out.is_empty(), "and none is left by who may not");
    let doctor = until(&each[0], &["doctor", "-o", "json"], 11, |said| finds(said, "MEMBER_DOWN"))?;
    ensure!(finds(&doctor, "NO_SPARE"), "{}", doctor.out);
    let bundle = cluster.path().join("bundle.tar.gz");
    let made = ctl(&each[0], &["debug", "bundle", "-f", &bundle.display().to_string()])?;
    ensure!(made.code == 0, "{}", made.complaint);
    let listed = Command::new("tar").arg("-tzf").arg(&bundle).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    for name in ["/MANIFEST.txt\n", "/status.json\n", "/doctor.txt\n", "-metrics.txt\n", "-readyz.txt\n"] {
        ensure!(listed.contains(name), "{name:?} in {listed}");
    }

    // Two are down: nothing is served, and that is told with the right code.
    cluster.members[1].kill()?;
    let waited = ctl(&each[0], &["wait", "--for", "quorum", "--timeout", "100ms"])?;
    ensure!(waited.code == 8 && waited.complaint.contains("[NOT_YET]"), "{}", waited.complaint);
    let quick = ["status", "-o", "json", "--command-timeout", "500ms"];
    let status = until(&each[0], &quick, 1, |said| finds(said, "NO_QUORUM"))?;
    ensure!(json(&status)?["health"] == "no quorum", "{}", status.out);

    // They come back, and a script that waits for that goes on.
    for member in &mut cluster.members[1..] {
        member.spawn()?;
    }
    until(&all, &["wait", "--for", "synced", "--cluster"], 0, |_| true)?;
    until(&each[0], &["can-stop"], 0, |_| true)?;
    Ok(())
}
