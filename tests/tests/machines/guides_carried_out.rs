//! The guides, carried out to the letter on machines with systemd.
//!
//! A block of a guide whose first line names hosts is done on them, in the order of the page: ```` ```sh db1 db2 ```` is run as root,
//! ```` ```toml db1 /path ```` (and `ini`, `yaml`, `perl`) becomes that file, ```` ```copy db1:/from db2:/to … ```` copies. Other blocks are for reading.
//! The debs lie in `/srv`, where the shells begin.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use cairn_tests::{
    harness,
    machines::{self, Lan, Machine},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live in the workspace")
}

struct Block {
    line: usize,
    kind: String,
    words: Vec<String>,
    text: String,
}

fn blocks(page: &str) -> Result<Vec<Block>> {
    let text = std::fs::read_to_string(root().join(page)).with_context(|| page.to_owned())?;
    let (mut found, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (line, content) in (1..).zip(text.lines()) {
        match (&mut open, content.strip_prefix("```")) {
            (None, Some(head)) => {
                let mut words = head.split_whitespace().map(str::to_owned);
                let kind = words.next().unwrap_or_default();
                open = Some(Block { line, kind, words: words.collect(), text: String::new() });
            }
            (Some(_), Some(_)) => found.extend(open.take().filter(|block| !block.words.is_empty())),
            (Some(block), None) => block.text = format!("{}{content}\n", block.text),
            (None, None) => {}
        }
    }
    ensure!(!found.is_empty(), "{page} has no block to carry out");
    Ok(found)
}

struct Site {
    _lan: Lan,
    machines: Vec<Machine>,
}

impl Site {
    fn new(debs: &Path, hosts: &[&str]) -> Result<Site> {
        let mut lan = Lan::new()?;
        let machines = hosts.iter().map(|name| lan.boot(name)).collect::<Result<Vec<_>>>()?;
        for machine in &machines {
            for deb in std::fs::read_dir(debs)?.flatten() {
                machine.copy_in(&deb.path(), &format!("/srv/{}", deb.file_name().to_string_lossy()))?;
            }
        }
        Ok(Site { _lan: lan, machines })
    }

    fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|machine| machine.name == name).with_context(|| format!("no host {name}"))
    }

    fn carry_out(&self, page: &str) -> Result<()> {
        for block in blocks(page)? {
            self.block(&block).with_context(|| format!("{page}:{}", block.line))?;
        }
        Ok(())
    }

    fn block(&self, block: &Block) -> Result<()> {
        match block.kind.as_str() {
            "sh" => {
                for host in &block.words {
                    let said = self.machine(host)?.sh(&format!("set -e; cd /srv; {}", block.text))?;
                    println!("--- {host}, line {}\n{said}", block.line);
                }
            }
            "toml" | "ini" | "yaml" | "perl" => {
                let (path, hosts) = block.words.split_last().context("a file needs a path")?;
                for host in hosts {
                    self.machine(host)?.write(path, &block.text, 0o644)?;
                }
            }
            "copy" => {
                let place = |word: &str| -> Result<PathBuf> {
                    let (host, path) = word.split_once(':').context("host:/path")?;
                    self.machine(host)?.path(path)
                };
                let (from, to) = block.words.split_first().context("what to copy")?;
                for to in to {
                    std::fs::copy(place(from)?, place(to)?).with_context(|| to.clone())?;
                }
            }
            other => anyhow::bail!("blocks of kind {other} cannot be carried out"),
        }
        Ok(())
    }
}

#[test]
fn every_command_for_three_hosts_works() -> Result<()> {
    if !machines::possible("every_command_for_three_hosts_works") {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let debs = machines::packages(scratch.path(), "0.1.0")?;
    let site = Site::new(&debs, &["db1", "db2", "db3"])?;
    site.carry_out("docs/quickstart.md")?;
    site.carry_out("docs/cairnctl.md")?;
    site.carry_out("docs/operations.md")?;
    // Last: it burns the cluster down and founds it anew.
    site.carry_out("docs/production.md")
}

#[test]
fn every_command_for_who_comes_from_etcd_works() -> Result<()> {
    if !machines::possible("every_command_for_who_comes_from_etcd_works") {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let debs = machines::packages(scratch.path(), "0.1.0")?;
    let site = Site::new(&debs, &["old1", "new1", "here"])?;
    let old = site.machine("old1")?;
    for program in ["etcd", "etcdctl"] {
        let real = harness::real_etcd("3.5")?.join(program);
        old.copy_in(&real, &format!("/srv/{program}"))?;
        site.machine("here")?.copy_in(&real, &format!("/usr/local/bin/{program}"))?;
    }
    old.sh(
        "systemd-run --quiet --unit=etcd /srv/etcd --data-dir=/srv/etcd.data --listen-client-urls=http://10.99.0.1:2379 \
         --advertise-client-urls=http://10.99.0.1:2379",
    )?;
    old.wait("etcd takes a key", |old| {
        Ok(old.try_sh("/srv/etcdctl --endpoints http://10.99.0.1:2379 put /app/color green")?.0)
    })?;
    for machine in &site.machines {
        machine.sh("apt-get install -y /srv/cairn*.deb")?;
    }
    site.carry_out("README.md")?;
    site.carry_out("docs/migrating.md")?;
    let got = site.machine("new1")?.sh("cairnctl get /app/color --print-value-only")?;
    ensure!(got == "green\n", "the key came over as {got:?}");
    Ok(())
}
