//! Backups of whole members: what a client is handed is the state of one moment, whole and provable, whatever happens beside it.

mod support;

use std::{fs::File, io::Write, path::Path};

use api::{error::EtcdError, etcdserverpb as pb};
use node::{BACKUPS_MAX, Backup, Handle, PIECE_BYTES};
use state_machine::store::Table;
use storage::snapshot::{DIGEST_BYTES, DbFile, check_digest};
use support::{Cluster, block_on};

fn put(key: String, value: Vec<u8>) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

/// Takes all pieces; answers the file's bytes, digest included.
async fn taken(mut backup: Backup) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut before: Option<u64> = None;
    while let Some(piece) = backup.recv().await {
        let piece = piece.expect("nothing goes wrong here");
        assert!(piece.blob.len() <= PIECE_BYTES);
        if let Some(before) = before.filter(|before| *before > 0) {
            assert_eq!(
                before - piece.remaining_bytes,
                piece.blob.len() as u64,
                "what remains shrinks by what came"
            );
        }
        before = Some(piece.remaining_bytes);
        bytes.extend_from_slice(&piece.blob);
    }
    assert_eq!(before, Some(0));
    bytes
}

fn opened(dir: &Path, bytes: &[u8]) -> DbFile {
    assert_eq!(bytes.len() as u64 % 512, DIGEST_BYTES);
    let path = dir.join("backup.db");
    File::create(&path).unwrap().write_all(bytes).unwrap();
    assert_eq!(check_digest(&File::open(&path).unwrap()).unwrap(), Some(true));
    DbFile::open(File::open(&path).unwrap()).unwrap()
}

async fn fill(handle: &Handle, keys: usize, value_bytes: usize) {
    for key in 0..keys {
        handle.put(put(format!("k{key:05}"), vec![key as u8; value_bytes])).await.unwrap();
    }
}

#[test]
fn a_backup_is_the_state_of_its_moment_while_writing_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1);
    let handle = cluster.handle(0);
    block_on(async {
        fill(&handle, 300, 1000).await;
        let (revision, version) = (handle.reader().revision(), handle.storage_version());
        let writer = tokio::spawn({
            let handle = handle.clone();
            async move {
                for n in 0..300 {
                    handle.put(put(format!("later{n}"), vec![1; 1000])).await.unwrap();
                }
            }
        });
        let mut backup = handle.snapshot().unwrap();
        let first = backup.recv().await.unwrap().unwrap();
        assert_eq!(first.version, version);
        let mut bytes = first.blob.to_vec();
        bytes.extend(taken(backup).await);
        writer.await.unwrap();
        let db = opened(dir.path(), &bytes);
        let status = db.status().unwrap();
        assert!(status.revision >= revision.0, "everything acknowledged before is in it");
        assert!(db.position().index.0 > 0);
        assert_eq!(db.table(Table::Members).unwrap().len(), 1);
    });
}

#[test]
fn no_more_than_a_few_at_once_and_a_client_that_is_gone_frees_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1);
    let handle = cluster.handle(0);
    block_on(async {
        // More than the queue of pieces holds, so that untouched backups stay under way.
        fill(&handle, 40, 100_000).await;
        let mut held = Vec::new();
        // The other test of this process may hold places of its own.
        while held.len() < BACKUPS_MAX {
            match handle.snapshot() {
                Ok(backup) => held.push(backup),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        assert_eq!(handle.snapshot().unwrap_err(), EtcdError::RequestTooManyRequests);
        drop(held);
        loop {
            if let Ok(backup) = handle.snapshot() {
                opened(dir.path(), &taken(backup).await);
                break;
            }
            tokio::task::yield_now().await;
        }
    });
}
