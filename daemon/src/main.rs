//! The life of a cairn member, from its arguments to its exit code. Read this file to learn the order of things; every step has its own
//! module: settings (`config`), who the member is (`identity`), how it comes to be (`bootstrap`), what runs (`lifecycle`).

mod announce;
mod bootstrap;
mod cli;
mod config;
mod discovery;
mod identity;
mod lifecycle;
mod logging;
mod owner;
mod port_holder;
mod refusal;
mod replace;
mod signals;
mod snapshot;
mod systemd;
mod verbs;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use bootstrap::{
    found::{self, Settled},
    prepare,
};
use cli::{Command, Look, Verb};
use config::{Note, Settings, Surroundings, source::Values, tongue::Tongue};
use lifecycle::reload::Reload;
use refusal::{Exit, Refusal};
use signals::Signals;
use systemd::sockets::Inherited;

/// Allocations of a request are freed on other threads than they were made on; mimalloc is built for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lifecycle::install_panic_hook();
    let exit = match cli::parse(std::env::args_os().skip(1)).and_then(begin) {
        Ok(exit) => exit,
        Err(refusal) => {
            systemd::refused(&refusal);
            logging::refuse(&refusal);
            refusal.exit()
        }
    };
    logging::flush();
    ExitCode::from(exit as u8)
}

fn begin(command: Command) -> Result<Exit, Refusal> {
    let Command { verb, flags, look } = command;
    let surroundings = Surroundings::of_process(flags);
    let ended = life(&verb, &look, &surroundings);
    ended.map_err(|refusal| refusal.in_the_words_of(&Tongue::of(&surroundings)))
}

fn life(verb: &Verb, look: &Look, surroundings: &Surroundings) -> Result<Exit, Refusal> {
    match verb {
        Verb::Run => member(surroundings)?,
        Verb::Help => print(config::generate::help())?,
        Verb::Version => print(verbs::version())?,
        Verb::ConfigCheck => {
            let (found, verdict) = verbs::config::check(surroundings, look);
            if look.quiet {
                return Ok(verdict.map_or_else(|refusal| refusal.exit(), |()| Exit::Stopped));
            }
            print(found)?;
            verdict?;
        }
        Verb::ConfigExplain(key) => {
            let (values, verdict) = verbs::config::explain(surroundings, key.as_deref(), look);
            print(values)?;
            verdict?;
        }
        Verb::ConfigConvert(file) => {
            let (text, verdict) = verbs::convert::run(file);
            print(text)?;
            verdict?;
        }
        Verb::Snapshot(order) => print(snapshot::run(surroundings, order)?)?,
        Verb::IdentityShow => print(verbs::identity::show(surroundings, look)?)?,
        Verb::Doctor => {
            let (report, exit) = verbs::doctor::run(surroundings, look);
            print(report)?;
            return Ok(exit);
        }
    }
    Ok(Exit::Stopped)
}

fn member(surroundings: &Surroundings) -> Result<(), Refusal> {
    systemd::begin();
    // Refuse before anything starts: settings that cannot be used end here, with nothing touched.
    let (settings, resolved) = config::load(surroundings)?;
    owner::refuse_root(&settings)?;
    let inherited = systemd::sockets::take()?;
    logging::init(&settings.log)?;
    announce::starting(&settings, &resolved.files);
    resolved.notes.iter().for_each(Note::log);
    lifecycle::raise_descriptor_limit();

    // A member whose history is lost may take its own place, in the same process: then there is a second start.
    let mut settings = settings;
    // One for all of them: a signal in between is obeyed by the next that waits.
    let mut signals = None;
    let mut goes_on = replace::resume(&settings, &mut signals)?;
    loop {
        match goes_on {
            Some(replace::Outcome::Joins(joiner)) => settings = *joiner,
            Some(replace::Outcome::Stopped(signal)) => {
                lifecycle::stopped_early(signal);
                return Ok(());
            }
            None => {}
        }
        match one_start(&settings, inherited.share()?, surroundings, resolved.values.clone(), &mut signals) {
            Ok(()) => return Ok(()),
            Err(refusal) => goes_on = Some(replace::instead(&settings, refusal, &mut signals)?),
        }
    }
}

/// From the data directory to the end of the member.
fn one_start(
    settings: &Settings,
    inherited: Inherited,
    surroundings: &Surroundings,
    values: Values,
    signals: &mut Option<Signals>,
) -> Result<(), Refusal> {
    // The data directory: lock, compare, ask whom it concerns. Sockets open only once the local identity is sound.
    let prepared = prepare::prepare(settings)?;
    let sockets = match lifecycle::bind(settings, inherited) {
        Ok(sockets) => sockets,
        Err(refusal) => {
            prepared.abandon();
            return Err(refusal);
        }
    };
    let prepared = prepared.count(settings)?;

    // Signals are caught before there is anything to wait for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Refusal::io("start", "the main runtime".as_ref(), &error))?;
    let within = runtime.enter();
    let signals =
        Signals::of(signals).map_err(|error| Refusal::io("listen for", "signals".as_ref(), &error))?;
    drop(within);

    // A new cluster begins when its first members are there.
    let ready = match runtime.block_on(found::settle(prepared, sockets.peers(), settings, signals))? {
        Settled::Ready(ready) => ready,
        Settled::Stopped(signal) => {
            lifecycle::stopped_early(signal);
            return Ok(());
        }
    };

    // Not in an async function: a start that is refused half-way drops runtimes of its own, which tokio forbids there with a panic.
    let within = runtime.enter();
    let member = lifecycle::start(settings, *ready, sockets)?;
    drop(within);
    let reload = Reload::new(surroundings, values);
    runtime.block_on(run(member, signals, reload))
}

async fn run(
    mut member: lifecycle::Member,
    signals: &mut Signals,
    mut reload: Reload<'_>,
) -> Result<(), Refusal> {
    let ended = lifecycle::serve(&mut member, signals, &mut reload).await;
    lifecycle::stop(member, ended, signals).await
}

/// To stdout. A reader that has gone away (`cairnd --help | head`) is no error; a file that is cut short is one.
fn print(text: String) -> Result<(), Refusal> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Refusal::io("write to", "stdout".as_ref(), &error))
        }
        _ => Ok(()),
    }
}
