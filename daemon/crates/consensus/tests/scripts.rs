//! Runs every script under `testscripts/`. Each is one behaviour; its output is the specification and is read in review. UPDATE=1 writes
//! the output down anew.

mod support;

use std::path::PathBuf;

fn scripts(directory: &str) -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testscripts").join(directory);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&root)
        .expect("the directory of scripts")
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds scripts", root.display());
    files
}

fn run(directory: &str) {
    for file in scripts(directory) {
        support::script::run_file(&file);
    }
}

#[test]
fn election() {
    run("election");
}

#[test]
fn append() {
    run("append");
}

#[test]
fn read_index() {
    run("read_index");
}

#[test]
fn snapshot() {
    run("snapshot");
}

#[test]
fn membership() {
    run("membership");
}

#[test]
fn guard() {
    run("guard");
}

#[test]
fn disk() {
    run("disk");
}
