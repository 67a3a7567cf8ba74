//! The completion scripts in the shells that they are for: somebody types, presses TAB, and gets a line that means the key. Keys and names are
//! anybody's, so whatever is in them, nothing of it is executed, neither by TAB nor when the line is.

use crate::fake::{Answer, Fake};
use crate::tools::skipped;
use api::etcdserverpb as pb;
use api::mvccpb::KeyValue;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const DRIVER: &str = include_str!("shells.zsh");

/// What is in the store: each would make a file, or end the word, where it is not quoted.
const KEYS: &[&str] = &[
    "/h/1$(touch pwned)",
    "/h/2`touch pwned`",
    "/h/3;touch pwned",
    "/h/4 it's \"so\"",
    "/h/5&touch pwned|x",
    "/h/6!x~*?[a]{b,c}<>#\\$HOME\\",
    "/h/7 größe",
    "/h/8new\ntouch pwned\n",
    "/h/8tab\ttouch pwned",
    "/h/8escape\u{1b}]0;x\u{7}",
    "-x$(touch pwned)",
    "/h/9'$(touch pwned)'",
    "/h/9a\"$(touch pwned)\"",
];
const MEMBER: &str = "db$(touch pwned);`touch pwned`";

/// What is typed, and the arguments that the completed line has. `None`: there is nothing to complete, or too much.
const TYPED: &[(&str, Option<&[&str]>)] = &[
    ("cairnctl get /h/1", Some(&["get", KEYS[0]])),
    ("cairnctl get /h/2", Some(&["get", KEYS[1]])),
    ("cairnctl get /h/3", Some(&["get", KEYS[2]])),
    ("cairnctl get /h/4", Some(&["get", KEYS[3]])),
    ("cairnctl get /h/4\\ it", Some(&["get", KEYS[3]])),
    ("cairnctl get '/h/4 it", Some(&["get", KEYS[3]])),
    ("cairnctl get \"/h/4 it", Some(&["get", KEYS[3]])),
    ("cairnctl get \"/h/1", Some(&["get", KEYS[0]])),
    ("cairnctl get '/h/2", Some(&["get", KEYS[1]])),
    ("cairnctl get \"/h/2", Some(&["get", KEYS[1]])),
    ("cairnctl get /h/5", Some(&["get", KEYS[4]])),
    ("cairnctl get /h/6", Some(&["get", KEYS[5]])),
    ("cairnctl get '/h/6", Some(&["get", KEYS[5]])),
    ("cairnctl get /h/7", Some(&["get", KEYS[6]])),
    ("cairnctl get /h/8", None),
    ("cairnctl get /h/", None),
    ("cairnctl get -- -x", Some(&["get", "--", KEYS[10]])),
    ("cairnctl get /h/9\\'", Some(&["get", KEYS[11]])),
    ("cairnctl get \"/h/9a", Some(&["get", KEYS[12]])),
    ("cairnctl get '/h/9a", Some(&["get", KEYS[12]])),
    ("cairnctl mem", Some(&["member"])),
    ("cairnctl member remove ", Some(&["member", "remove", "1f"])),
    ("cairnctl can-stop db", Some(&["can-stop", MEMBER])),
    ("cairnctl get k --consis", Some(&["get", "k", "--consistency"])),
    ("cairnctl check perf --load x", Some(&["check", "perf", "--load", "xl"])),
];

/// Quotes that nobody foresees: whatever becomes of such a line, it executes nothing.
const RISKY: &[&str] = &[
    "cairnctl get '/h/'1",
    "cairnctl get \"/h/\"2",
    "cairnctl get '/h/9'\\'",
    "cairnctl get /h/\"1",
    "cairnctl get /h/'1",
    "cairnctl get $'/h/1",
    "cairnctl get \"/h/\"\"2",
    "cairnctl get '/h/''3",
    "cairnctl get \"/h\"'/3",
    "cairnctl get /h/1\\",
    "cairnctl get 'k' \"/h/2",
];

struct Shell {
    name: &'static str,
    interactive: &'static [&'static str],
    setup: &'static str,
    /// Prints the arguments of the line in `$1`, each with a zero behind it.
    read: &'static [&'static str],
}

const BASH: Shell = Shell {
    name: "bash",
    interactive: &["bash", "--norc", "-i"],
    setup: r#"source <(cairnctl completion bash)
report() { printf %s "$READLINE_LINE" >part; mv part line; READLINE_LINE=''; }
bind -x '"\C-g": report'
: >ready
"#,
    read: &["bash", "-c", r#"cairnctl() { printf '%s\0' "$@"; }; eval "$1""#, "bash"],
};

const ZSH: Shell = Shell {
    name: "zsh",
    interactive: &["zsh", "-f", "-i"],
    setup: r#"autoload -U compinit; compinit -u -D
source <(cairnctl completion zsh)
report() { print -rn -- "$BUFFER" >part; mv part line; BUFFER=''; }
zle -N report
bindkey '^G' report
: >ready
"#,
    read: &["zsh", "-f", "-c", r#"cairnctl() { printf '%s\0' "$@"; }; eval "$1""#, "zsh"],
};

const FISH: Shell = Shell {
    name: "fish",
    interactive: &["fish", "--no-config", "-i"],
    setup: r"cairnctl completion fish | source
function report
    commandline >part
    mv part line
    commandline ''
end
bind \cg report
touch ready
",
    read: &["fish", "--no-config", "-c", r"function cairnctl; printf '%s\0' $argv; end; eval $argv[1]"],
};

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A shell of somebody who has nothing but cairnctl, in a directory of its own.
fn run(words: &[&str], arguments: &[&str], home: &Path, endpoint: &str) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_cairnctl")).parent().expect("it is in a directory");
    let path = std::env::join_paths([binary, Path::new("/usr/bin"), Path::new("/bin")]).expect("a path");
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(arguments).current_dir(home).env_clear();
    command.env("HOME", home).env("PATH", path).env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
    command.env("CAIRNCTL_CONFIG_FILE", "/dev/null").env("CAIRNCTL_ENDPOINTS", endpoint);
    command.stdin(Stdio::null()).output().expect("the shell starts")
}

fn completes(shell: &Shell) {
    if let Some(missing) = ["zsh", shell.name].into_iter().find(|name| !is_installed(name)) {
        return skipped(shell.name, &format!("{missing} is not installed"));
    }
    let kv = |key: &&'static str| KeyValue { key: (*key).into(), ..Default::default() };
    let member = pb::Member { id: 0x1f, name: MEMBER.into(), ..Default::default() };
    let server = Fake::start([
        (
            "Range",
            Answer::one(&pb::RangeResponse { kvs: KEYS.iter().map(kv).collect(), ..Default::default() }),
        ),
        ("MemberList", Answer::one(&pb::MemberListResponse { members: vec![member], ..Default::default() })),
    ]);
    let home = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).expect("write");
    write("driver", DRIVER);
    write("setup", shell.setup);
    let line =
        |(text, meant): &(&str, Option<_>)| format!("{}{text}\n", if meant.is_some() { '+' } else { '=' });
    let risky: String = RISKY.iter().map(|text| format!("={text}\n")).collect();
    write("typed", &(TYPED.iter().map(line).collect::<String>() + &risky));
    let directory = home.path().to_str().expect("text");
    let driver = [&["zsh", "-f", "driver", directory], shell.interactive].concat();
    let output = run(&driver, &[], home.path(), &server.endpoint);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let completed = String::from_utf8(output.stdout).expect("text");
    let completed: Vec<&str> = completed.lines().collect();
    assert_eq!(completed.len(), TYPED.len() + RISKY.len(), "{completed:?}");
    for line in &completed[TYPED.len()..] {
        // An open quote is an error of the shell, and no matter here.
        run(shell.read, &[*line], home.path(), &server.endpoint);
        assert!(!home.path().join("pwned").exists(), "{}: {line:?} executes something", shell.name);
    }
    for ((typed, meant), line) in TYPED.iter().zip(completed) {
        let Some(meant) = meant else {
            assert_eq!(line, *typed, "{}: nothing fits alone", shell.name);
            continue;
        };
        let read = run(shell.read, &[line], home.path(), &server.endpoint);
        let arguments = String::from_utf8(read.stdout).expect("text");
        let arguments: Vec<&str> = arguments.split_terminator('\0').collect();
        assert_eq!(arguments, *meant, "{}: {typed:?} became {line:?}", shell.name);
    }
    assert!(!home.path().join("pwned").exists(), "{}: something in a key was executed", shell.name);
}

#[test]
fn bash_completes_what_the_cluster_has_and_executes_none_of_it() {
    completes(&BASH);
}

#[test]
fn zsh_completes_what_the_cluster_has_and_executes_none_of_it() {
    completes(&ZSH);
}

#[test]
fn fish_completes_what_the_cluster_has_and_executes_none_of_it() {
    completes(&FISH);
}
