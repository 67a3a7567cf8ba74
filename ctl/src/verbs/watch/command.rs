//! The command that a watch runs for each change. Its output goes where ours goes; it reads nothing.

use crate::failure::{Exit, Failure, Result};
use crate::output::{event_type, quote, tell};
use api::mvccpb::Event;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

/// Runs `command` for `event` and waits for its end. One that fails ends the watch, as etcdctl's does.
pub async fn run(command: &[OsString], revision: i64, event: &Event) -> Result<()> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    let kv = event.kv.clone().unwrap_or_default();
    let mut process = Command::new(program);
    process
        .args(arguments)
        .stdin(Stdio::null())
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(event_type(event.r#type).as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&kv.key))
        .env("ETCD_WATCH_VALUE", quote(&kv.value));
    // Not on this thread: the connection lives on it and must answer the server meanwhile.
    let ended = tokio::task::spawn_blocking(move || process.status()).await;
    let why = match ended.expect("waiting for a process does not panic") {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => how(status),
        Err(error) => not_started(program, &error),
    };
    let words: Vec<String> = command.iter().map(|word| quote(word.as_bytes())).collect();
    tell(format_args!("command [{}] error ({why})", words.join(" ")));
    Err(Failure::silent(Exit::Error))
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {}", signal_name(signal)),
        (None, None) => status.to_string(),
    }
}

fn signal_name(signal: i32) -> String {
    match signal {
        1 => "hangup".into(),
        2 => "interrupt".into(),
        6 => "aborted".into(),
        9 => "killed".into(),
        11 => "segmentation fault".into(),
        13 => "broken pipe".into(),
        15 => "terminated".into(),
        other => format!("signal {other}"),
    }
}

fn not_started(program: &OsStr, error: &std::io::Error) -> String {
    let name = String::from_utf8_lossy(program.as_bytes());
    let searched = !program.as_bytes().contains(&b'/');
    match error.kind() {
        ErrorKind::NotFound if searched => {
            format!("exec: {}: executable file not found in $PATH", quote(program.as_bytes()))
        }
        ErrorKind::NotFound => format!("fork/exec {name}: no such file or directory"),
        ErrorKind::PermissionDenied => format!("fork/exec {name}: permission denied"),
        _ => format!("fork/exec {name}: {error}"),
    }
}
