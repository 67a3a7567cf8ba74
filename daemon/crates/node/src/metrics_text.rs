//! `/metrics` of the member itself, under etcd's names where the meaning is the same. The edge adds its own.

use std::fmt::Write;

use state_machine::store::Store;

use crate::{handle::Handle, metrics::sample};

pub(crate) fn render(handle: &Handle) -> String {
    let shared = &handle.shared;
    let metrics = &shared.metrics;
    let status = handle.node_status();
    let reader = shared.reader();
    let size = shared.store().size();
    let mut out = String::with_capacity(16 * 1024);
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    let gauge =
        |out: &mut String, name: &str, help: &str, value: f64| sample(out, name, "gauge", help, value);
    let count = |out: &mut String, name: &str, help: &str, value: u64| {
        sample(out, name, "counter", help, value as f64);
    };

    gauge(
        &mut out,
        "etcd_server_has_leader",
        "Whether this member knows a leader.",
        flag(!status.leader.is_none()),
    );
    gauge(&mut out, "etcd_server_is_leader", "Whether this member leads.", flag(status.is_leader));
    gauge(&mut out, "etcd_server_is_learner", "Whether this member is a learner.", flag(status.is_learner));
    count(
        &mut out,
        "etcd_server_leader_changes_seen_total",
        "Leader changes this member has seen.",
        metrics.leader_changes.get(),
    );
    gauge(
        &mut out,
        "etcd_server_proposals_committed_total",
        "Highest log index known to be committed.",
        status.committed.0 as f64,
    );
    gauge(
        &mut out,
        "etcd_server_proposals_applied_total",
        "Highest log index applied here.",
        status.applied.0 as f64,
    );
    gauge(
        &mut out,
        "etcd_server_proposals_pending",
        "Clients whose proposal waits to be applied.",
        shared.waiters.count() as f64,
    );
    count(
        &mut out,
        "etcd_server_proposals_failed_total",
        "Proposals that were dropped or timed out.",
        metrics.proposals_failed.get(),
    );
    count(
        &mut out,
        "etcd_server_read_indexes_failed_total",
        "Read rounds that had to be repeated.",
        metrics.read_rounds_failed.get(),
    );
    gauge(
        &mut out,
        "etcd_server_quota_backend_bytes",
        "Quota of the state store in bytes, 0 for none.",
        handle.quota_bytes() as f64,
    );
    gauge(
        &mut out,
        "cairn_quarantined",
        "Whether this member is silent because it, or a leader that contradicts it, has lost history.",
        flag(shared.sentinel.is_quarantined()),
    );
    shared.sentinel.refusals.print(&mut out);
    let _ = writeln!(
        out,
        "# HELP etcd_server_id This member's id.\n# TYPE etcd_server_id gauge\netcd_server_id{{server_id=\"{}\"}} 1",
        status.member
    );
    let _ = writeln!(
        out,
        "# HELP etcd_server_version API level served.\n# TYPE etcd_server_version gauge\n\
         etcd_server_version{{server_version=\"{}\"}} 1",
        types::limits::ETCD_VERSION
    );
    if let Some(version) = handle.cluster_version() {
        let short: Vec<&str> = version.split('.').take(2).collect();
        let _ = writeln!(
            out,
            "# HELP etcd_cluster_version Agreed version of the cluster.\n# TYPE etcd_cluster_version gauge\n\
             etcd_cluster_version{{cluster_version=\"{}\"}} 1",
            short.join(".")
        );
    }

    metrics.wal_fsync.print(
        &mut out,
        "etcd_disk_wal_fsync_duration_seconds",
        "Time of one sync of the write-ahead log.",
    );
    metrics.wal_write.print(
        &mut out,
        "etcd_disk_wal_write_duration_seconds",
        "Time of one write to the write-ahead log.",
    );
    shared.defragmentation.print(&mut out);
    metrics.apply.print(
        &mut out,
        "cairn_apply_batch_duration_seconds",
        "Time to apply one batch of entries.",
    );

    gauge(
        &mut out,
        "etcd_mvcc_db_total_size_in_bytes",
        "Bytes that the state store occupies.",
        size.total_bytes as f64,
    );
    gauge(
        &mut out,
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Bytes of the state store in use.",
        size.in_use_bytes as f64,
    );
    gauge(
        &mut out,
        "etcd_debugging_mvcc_current_revision",
        "Revision of the store.",
        reader.revision().0 as f64,
    );
    gauge(
        &mut out,
        "etcd_debugging_mvcc_compact_revision",
        "Last compacted revision.",
        reader.compact_revision().0 as f64,
    );
    gauge(&mut out, "etcd_debugging_mvcc_keys_total", "Live keys.", reader.key_count() as f64);
    count(&mut out, "etcd_mvcc_range_total", "Range requests read here.", metrics.ranges.get());
    count(&mut out, "etcd_mvcc_put_total", "Puts applied here.", metrics.puts.get());
    count(&mut out, "etcd_mvcc_delete_total", "Deletes applied here.", metrics.deletes.get());
    count(&mut out, "etcd_mvcc_txn_total", "Transactions applied here.", metrics.txns.get());
    count(
        &mut out,
        "etcd_debugging_mvcc_db_compaction_keys_total",
        "Versions dropped by compaction.",
        metrics.compacted_rows.get(),
    );
    count(
        &mut out,
        "cairn_read_rounds_total",
        "Rounds begun here to confirm reads or leadership.",
        shared.gate.rounds(),
    );
    shared.leases.metrics.print(&mut out);
    count(
        &mut out,
        "cairn_snapshots_installed_total",
        "Whole states received from a leader and installed.",
        metrics.snapshots_installed.get(),
    );
    let watch = &shared.watch.gauges;
    gauge(&mut out, "etcd_debugging_mvcc_watch_stream_total", "Open watch streams.", watch.streams() as f64);
    gauge(&mut out, "etcd_debugging_mvcc_watcher_total", "Watchers.", watch.watchers() as f64);
    gauge(
        &mut out,
        "etcd_debugging_mvcc_slow_watcher_total",
        "Watchers that catch up, or whose client does not read.",
        watch.slow_watchers() as f64,
    );
    count(&mut out, "etcd_debugging_mvcc_events_total", "Events sent to watchers.", watch.events());
    gauge(
        &mut out,
        "etcd_debugging_mvcc_pending_events_total",
        "Events that wait in the queues of watch streams.",
        watch.pending_events() as f64,
    );
    gauge(
        &mut out,
        "cairn_watch_queued_bytes",
        "Bytes of events that wait in the queues of watch streams.",
        watch.queued_bytes() as f64,
    );
    gauge(
        &mut out,
        "cairn_raft_log_memory_bytes",
        "Log that is kept in memory, for followers and until the state store has it.",
        shared.raft_status.lock().log_tail_bytes as f64,
    );
    out
}
