//! TLS, authentication, tracing and checks: mostly what this version refuses rather than pretends to do.

use super::{
    Group::{Auth, ClientSecurity, Corruption, Features, PeerSecurity, Security, Tracing, Unsafe},
    Kind, Setting,
    Status::{Active, NoEffect, Refused},
    count, row,
};
use crate::config::table::Status;

const NO_TLS: Status = Refused {
    harmless: &["false"],
    instead: "use http:// URLs on a trusted network, or put a TLS proxy in front: TLS is not supported by this version",
};
const NO_AUTH: Status = Refused {
    harmless: &[],
    instead: "leave it out and guard the client port by the network: authentication is not supported by this version",
};
const ONLY_WITH_TRACING: Status = NoEffect("spans are not exported by this version");

pub static ROWS: &[Setting] = &[
    row("cert-file", Kind::Path, "", ClientSecurity, NO_TLS, "Certificate shown to clients."),
    row("key-file", Kind::Path, "", ClientSecurity, NO_TLS, "Key of that certificate."),
    row(
        "client-cert-file",
        Kind::Path,
        "",
        ClientSecurity,
        NO_TLS,
        "Certificate for the daemon's own client connections.",
    ),
    row("client-key-file", Kind::Path, "", ClientSecurity, NO_TLS, "Key of that certificate."),
    row("client-cert-auth", Kind::Bool, "false", ClientSecurity, NO_TLS, "Demand certificates of clients."),
    row("client-crl-file", Kind::Path, "", ClientSecurity, NO_TLS, "Revoked client certificates.")
        .toml("crl-file"),
    row(
        "client-cert-allowed-hostname",
        Kind::List,
        "",
        ClientSecurity,
        NO_TLS,
        "Host names a client's certificate may carry.",
    )
    .toml("allowed-hostname"),
    row("trusted-ca-file", Kind::Path, "", ClientSecurity, NO_TLS, "Authorities of client certificates."),
    row("auto-tls", Kind::Bool, "false", ClientSecurity, NO_TLS, "Make a certificate for clients."),
    row("peer-cert-file", Kind::Path, "", PeerSecurity, NO_TLS, "Certificate shown to peers.")
        .toml("cert-file"),
    row("peer-key-file", Kind::Path, "", PeerSecurity, NO_TLS, "Key of that certificate.").toml("key-file"),
    row("peer-client-cert-file", Kind::Path, "", PeerSecurity, NO_TLS, "Certificate for dialling peers.")
        .toml("client-cert-file"),
    row("peer-client-key-file", Kind::Path, "", PeerSecurity, NO_TLS, "Key of that certificate.")
        .toml("client-key-file"),
    row("peer-client-cert-auth", Kind::Bool, "false", PeerSecurity, NO_TLS, "Demand certificates of peers.")
        .toml("client-cert-auth"),
    row("peer-trusted-ca-file", Kind::Path, "", PeerSecurity, NO_TLS, "Authorities of peer certificates.")
        .toml("trusted-ca-file"),
    row(
        "peer-cert-allowed-cn",
        Kind::List,
        "",
        PeerSecurity,
        NO_TLS,
        "Common names a peer's certificate may carry.",
    )
    .toml("allowed-cn"),
    row(
        "peer-cert-allowed-hostname",
        Kind::List,
        "",
        PeerSecurity,
        NO_TLS,
        "Host names a peer's certificate may carry.",
    )
    .toml("allowed-hostname"),
    row("peer-auto-tls", Kind::Bool, "false", PeerSecurity, NO_TLS, "Make a certificate for peers.")
        .toml("auto-tls"),
    row("peer-crl-file", Kind::Path, "", PeerSecurity, NO_TLS, "Revoked peer certificates.").toml("crl-file"),
    row(
        "peer-skip-client-san-verification",
        Kind::Bool,
        "false",
        PeerSecurity,
        NO_TLS,
        "Do not compare a peer's address with its certificate.",
    )
    .toml("skip-client-san-verification"),
    row("self-signed-cert-validity", count(1), "1", Security, NO_TLS, "Years that made certificates last."),
    row("cipher-suites", Kind::List, "", Security, NO_TLS, "TLS suites that may be used."),
    row(
        "tls-min-version",
        Kind::Choice(&["TLS1.2", "TLS1.3"]),
        "TLS1.2",
        Security,
        NO_TLS,
        "Oldest TLS version.",
    ),
    row(
        "tls-max-version",
        Kind::Choice(&["", "TLS1.2", "TLS1.3"]),
        "",
        Security,
        NO_TLS,
        "Newest TLS version; empty: any.",
    ),
    row("cors", Kind::List, "*", Security, Active, "Origins that browsers may call from."),
    row(
        "host-whitelist",
        Kind::List,
        "*",
        Security,
        Active,
        "Host names that plain HTTP requests may carry.",
    ),
    row("auth-token", Kind::Text, "simple", Auth, NO_AUTH, "Kind of token that clients log in with."),
    row("auth-token-ttl", count(1), "300", Auth, NO_AUTH, "Seconds after which an idle simple token ends."),
    row("bcrypt-cost", Kind::Count { min: 4, max: 31 }, "10", Auth, NO_AUTH, "Cost of hashing a password."),
    row(
        "feature-gates",
        Kind::Gates,
        "",
        Features,
        Active,
        "etcd's feature switches; the list below says what each does here.",
    ),
    row(
        "corrupt-check-time",
        Kind::Duration,
        "0",
        Corruption,
        NoEffect(
            "hashes are not compared between members by this version; compare with `etcdctl endpoint hashkv`",
        ),
        "Period of comparing hashes between members; 0: never.",
    ),
    row(
        "compact-hash-check-time",
        Kind::Duration,
        "1m",
        Corruption,
        NoEffect("compaction hashes are not compared between members by this version"),
        "Period of comparing hashes of compactions.",
    ),
    row(
        "enable-distributed-tracing",
        Kind::Bool,
        "false",
        Tracing,
        Refused {
            harmless: &[],
            instead: "watch /metrics and the log: spans are not exported by this version",
        },
        "Export OpenTelemetry spans.",
    ),
    row(
        "distributed-tracing-address",
        Kind::Text,
        "localhost:4317",
        Tracing,
        ONLY_WITH_TRACING,
        "Collector of spans.",
    ),
    row(
        "distributed-tracing-service-name",
        Kind::Text,
        "etcd",
        Tracing,
        ONLY_WITH_TRACING,
        "Service name in spans.",
    ),
    row(
        "distributed-tracing-instance-id",
        Kind::Text,
        "",
        Tracing,
        ONLY_WITH_TRACING,
        "Instance name in spans.",
    ),
    row(
        "distributed-tracing-sampling-rate",
        Kind::Count { min: 0, max: 1_000_000 },
        "0",
        Tracing,
        ONLY_WITH_TRACING,
        "Spans exported of a million.",
    ),
    row(
        "force-new-cluster",
        Kind::Bool,
        "false",
        Unsafe,
        Active,
        "Continue this member's data as a cluster of one and a new life of the cluster: for when a majority is lost for good. The others cannot come back with what they have. Leave it out afterwards.",
    ),
    row(
        "unsafe-no-fsync",
        Kind::Bool,
        "false",
        Unsafe,
        Active,
        "Acknowledge before the disk has it: fast, and a crash of the machine loses acknowledged writes.",
    ),
];
