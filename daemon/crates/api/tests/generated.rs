//! The committed Rust code is what our .proto files say. Regenerates it with a pure-Rust compiler (no protoc) and compares;
//! `UPDATE=1 cargo test -p cairn-api --test generated` rewrites the committed files instead.

use std::{fs, path::Path};

const PROTOS: &[&str] = &[
    "etcdserverpb/rpc.proto",
    "etcdserverpb/raft_internal.proto",
    "etcdserverpb/metadata.proto",
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "raftpb/raft.proto",
    "walpb/record.proto",
    "snappb/snap.proto",
    "leasepb/lease.proto",
    "membershippb/membership.proto",
    "v3electionpb/v3election.proto",
    "v3lockpb/v3lock.proto",
    "grpc/health/v1/health.proto",
    "cairn/v1/operator.proto",
];

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let fresh = tempfile::tempdir().expect("temporary directory");
    let descriptors = protox::compile(PROTOS, [root.join("proto")]).expect("our .proto files compile");
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .bytes(".")
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)
        .expect("code generation");

    let mut names: Vec<String> = fs::read_dir(fresh.path())
        .expect("list generated files")
        .map(|entry| entry.expect("directory entry").file_name().into_string().expect("UTF-8 file name"))
        .collect();
    names.sort();
    assert!(names.len() >= 9, "expected one file per package, got {names:?}");
    let update = std::env::var_os("UPDATE").is_some();
    for name in &names {
        let new = fs::read_to_string(fresh.path().join(name)).expect("read generated file");
        let path = committed.join(name);
        if update {
            fs::write(&path, &new).expect("write generated file");
            continue;
        }
        let old = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            old == new,
            "src/generated/{name} differs from its .proto file; \
             run: UPDATE=1 cargo test -p cairn-api --test generated"
        );
    }
    for entry in fs::read_dir(&committed).expect("list committed files") {
        let name = entry.expect("directory entry").file_name().into_string().expect("UTF-8 file name");
        assert!(names.contains(&name), "src/generated/{name} comes from no .proto file: delete it");
    }
}
