//! A tool that is still running: its output as it comes, lines for its stdin, a network that can be cut under it.

use crate::tools::{Run, Tool};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How long something may take to appear; generous, since the machine may be busy with other tests.
const APPEAR_MAX: Duration = Duration::from_secs(60);

/// Bytes that a thread reads for us.
#[derive(Clone, Default)]
struct Seen(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// The bytes so far, and whether these are all.
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Seen {
    fn of(mut source: impl Read + Send + 'static) -> Seen {
        let seen = Seen::default();
        let ours = seen.clone();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            loop {
                let len = source.read(&mut part).unwrap_or(0);
                let Shared { state, changed } = &*seen.0;
                let mut state = state.lock().expect("nobody panics with it");
                state.0.extend_from_slice(&part[..len]);
                state.1 = len == 0;
                changed.notify_all();
                if len == 0 {
                    return;
                }
            }
        });
        ours
    }

    fn ended(&self) -> bool {
        self.0.state.lock().expect("nobody panics with it").1
    }

    /// Waits until `enough` holds for what came, or until nothing more comes.
    fn until(&self, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, Vec<u8>> {
        let Shared { state, changed } = &*self.0;
        let state = state.lock().expect("nobody panics with it");
        let waited =
            changed.wait_timeout_while(state, APPEAR_MAX, |(bytes, ended)| !enough(bytes) && !*ended);
        let (state, _) = waited.expect("nobody panics with it");
        if enough(&state.0) { Ok(state.0.clone()) } else { Err(state.0.clone()) }
    }
}

/// A running tool; it is killed with the value.
pub struct Live {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Seen,
    stderr: Seen,
}

impl Live {
    pub fn start(tool: Tool, endpoints: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Live {
        let mut command = tool.command(endpoints, arguments);
        // Commands that a watch runs are looked up as usual.
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(variables.iter().copied());
        let mut child = command.spawn().expect("start the tool");
        let stdin = child.stdin.take();
        let stdout = Seen::of(child.stdout.take().expect("piped"));
        let stderr = Seen::of(child.stderr.take().expect("piped"));
        Live { child, stdin, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its stdin.
    pub fn say(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("not closed yet");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the tool reads its stdin");
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What it has printed, once that is `enough`.
    pub fn printed(&self, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        self.stdout.until(enough).unwrap_or_else(|so_far| {
            let complaints = self.stderr.until(|_| true).expect("anything is enough");
            panic!(
                "this never came to more: {:?}; on stderr: {}",
                String::from_utf8_lossy(&so_far),
                String::from_utf8_lossy(&complaints)
            )
        })
    }

    /// What it has said on stderr, once that contains `text`.
    pub fn complained(&self, text: &str) -> String {
        let enough = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let said = self.stderr.until(enough);
        let said = said.unwrap_or_else(|said| panic!("no {text:?} in {:?}", String::from_utf8_lossy(&said)));
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits for its own end.
    pub fn end(mut self) -> Run {
        let all = |seen: &Seen| seen.until(|_| false).expect_err("nothing is enough");
        let (shown, ended) = (all(&self.stdout), self.stdout.ended());
        assert!(ended, "it goes on after {:?}", String::from_utf8_lossy(&shown));
        let status = self.child.wait().expect("wait for the tool");
        let stderr = String::from_utf8_lossy(&all(&self.stderr)).into_owned();
        // The log lines of etcd's client library are not etcdctl's own words.
        let stderr = stderr.lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n"));
        Run { stdout: all(&self.stdout), stderr: stderr.collect(), code: status.code().expect("not killed") }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of a server that can be cut off.
pub struct Line {
    pub endpoint: String,
    /// Both ends of every connection; `None` once it is cut.
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Line {
    pub fn to(server: &str) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = listener.local_addr().expect("its address").to_string();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let (register, server) = (open.clone(), server.to_owned());
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let mut open = register.lock().expect("nobody panics with it");
                let Some(open) = open.as_mut() else { return };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let share = |stream: &TcpStream| stream.try_clone().expect("share a connection");
                    let (mut from, mut to) = (share(from), share(to));
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
                open.extend([client, server]);
            }
        });
        Line { endpoint, open }
    }

    /// Breaks every connection; later ones break at once.
    pub fn cut(&self) {
        for stream in self.open.lock().expect("nobody panics with it").take().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
