//! defrag: gives the space of removed keys back, one member after another, so that never two are busy with it at once.

use super::endpoint::asked;
use super::show;
use crate::cli;
use crate::client::{Client, DEFRAGMENT};
use crate::failure::{Exit, Failure, Result};
use crate::output::tell;
use crate::settings::Settings;
use crate::units::format_duration;
use api::etcdserverpb::{DefragmentRequest, DefragmentResponse};
use clap::{ArgMatches, Command};
use std::time::Instant;

pub fn command() -> Command {
    cli::verb("defrag", "Gives back the space of removed keys", "cairnctl defrag [flags]")
        .after_help(
            "A cairn member does so by itself; this only makes it sooner, without blocking anything. The members are asked one after\n\
             another. What takes longer than two seconds goes on in the background: the size is in endpoint status.",
        )
        .arg(cli::switch("cluster", "Ask every member that the cluster knows instead of --endpoints"))
}

pub async fn defrag(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let mut failed = false;
    for endpoint in asked(settings, matches).await? {
        let name = endpoint.name.clone();
        let began = Instant::now();
        let answer: Result<DefragmentResponse> = match Client::over(settings, vec![endpoint], false) {
            Ok(mut client) => client.call(&DEFRAGMENT, &DefragmentRequest {}).await,
            Err(failure) => Err(failure),
        };
        let took = format_duration(began.elapsed());
        match answer {
            Ok(_) => show(format!("Finished defragmenting etcd member[{name}]. took {took}\n").as_bytes())?,
            Err(failure) => {
                failed = true;
                let reason = failure.headline.replace('\n', " ");
                tell(format_args!("Failed to defragment etcd member[{name}]. took {took}. ({reason})"));
            }
        }
    }
    if failed { Err(Failure::silent(Exit::Error)) } else { Ok(()) }
}
