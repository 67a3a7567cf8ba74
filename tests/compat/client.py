"""Drives one endpoint through the Python client `etcd3` and prints one JSON object per step.

usage: client.py HOST PORT

The test runs it against the real etcd and against cairn and compares the lines. Ids of cluster and member and the raft term differ by
nature and are left out; revisions, versions and error texts are not.
"""

import json
import sys

import etcd3
import grpc


def step(name, action):
    try:
        result = action()
    except grpc.RpcError as error:
        result = {"code": error.code().name, "text": error.details()}
    except Exception as error:  # the client wraps some codes in classes of its own
        cause = error.__cause__ or error.__context__
        result = {"raised": type(error).__name__}
        if isinstance(cause, grpc.RpcError):
            result["text"] = cause.details()
    print(json.dumps({"step": name, "result": result}, sort_keys=True, default=str), flush=True)


def meta(pair):
    value, about = pair
    if about is None:
        return None
    return {
        "value": value.decode(),
        "key": about.key.decode(),
        "create": about.create_revision,
        "mod": about.mod_revision,
        "version": about.version,
        "lease": about.lease_id,
        "revision": about.response_header.revision,
    }


def many(pairs):
    return [meta(pair) for pair in pairs]


def main():
    client = etcd3.client(host=sys.argv[1], port=int(sys.argv[2]), timeout=10)
    kv = client.kvstub
    rpc = etcd3.etcdrpc
    t = client.transactions

    step("put", lambda: client.put("py/a", "1").header.revision)
    step("put again with prev_kv", lambda: client.put("py/a", "2", prev_kv=True).prev_kv.value.decode())
    step("get", lambda: meta(client.get("py/a")))
    step("get missing", lambda: meta(client.get("py/none")))
    for name in ["b", "c", "d"]:
        step("put " + name, lambda: client.put("py/" + name, name * 3).header.revision)
    step("prefix", lambda: many(client.get_prefix("py/")))
    step("prefix descending", lambda: many(client.get_prefix("py/", sort_order="descend", sort_target="key")))
    step("prefix by value", lambda: many(client.get_prefix("py/", sort_order="ascend", sort_target="value")))
    step("keys only", lambda: [about.key.decode() for _, about in client.get_prefix("py/", keys_only=True)])
    step("range", lambda: many(client.get_range("py/b", "py/d")))
    step("put if not exists, exists", lambda: client.put_if_not_exists("py/a", "x"))
    step("put if not exists, new", lambda: client.put_if_not_exists("py/new", "x"))
    step("replace, wrong", lambda: client.replace("py/new", "y", "z"))
    step("replace, right", lambda: client.replace("py/new", "x", "z"))

    def transaction():
        ok, answers = client.transaction(
            compare=[t.value("py/a") == "2", t.version("py/a") > 1],
            success=[t.put("py/t", "yes"), t.get("py/t"), t.delete("py/b")],
            failure=[t.put("py/t", "no")],
        )
        shown = []
        for answer in answers:
            shown.append(many(answer) if isinstance(answer, list) else str(type(answer).__name__))
        return [ok, shown]

    step("transaction, success", transaction)
    step("transaction, failure", transaction)
    step("delete", lambda: client.delete("py/c"))
    step("delete missing", lambda: client.delete("py/c"))
    step("delete prefix", lambda: client.delete_prefix("py/d").deleted)
    step("history", lambda: [kv.value.decode() for kv in kv.Range(rpc.RangeRequest(key=b"py/a", revision=2)).kvs])
    step("limit", lambda: (lambda r: [len(r.kvs), r.more, r.count])(
        kv.Range(rpc.RangeRequest(key=b"py/", range_end=b"py0", limit=1))))
    step("count only", lambda: (lambda r: [len(r.kvs), r.more, r.count])(
        kv.Range(rpc.RangeRequest(key=b"\0", range_end=b"\0", count_only=True))))
    step("filters", lambda: [x.key.decode() for x in kv.Range(rpc.RangeRequest(
        key=b"\0", range_end=b"\0", min_mod_revision=4, max_create_revision=20)).kvs])

    step("empty key put", lambda: kv.Put(rpc.PutRequest(key=b"", value=b"x")))
    step("empty key range", lambda: kv.Range(rpc.RangeRequest(key=b"")))
    step("empty key delete", lambda: kv.DeleteRange(rpc.DeleteRangeRequest(key=b"")))
    step("future revision", lambda: kv.Range(rpc.RangeRequest(key=b"py/a", revision=1 << 40)))
    step("unknown sort", lambda: kv.Range(rpc.RangeRequest(key=b"py/a", sort_order=9)))
    step("ignore value with value", lambda: kv.Put(rpc.PutRequest(key=b"py/a", value=b"x", ignore_value=True)))
    step("ignore value of missing", lambda: kv.Put(rpc.PutRequest(key=b"py/zz", ignore_value=True)))
    step("unknown lease", lambda: kv.Put(rpc.PutRequest(key=b"py/a", value=b"x", lease=77)))
    put = lambda key: rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b"1"))
    cut = lambda key, end: rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))
    step("duplicate key", lambda: kv.Txn(rpc.TxnRequest(success=[put(b"k"), put(b"k")])))
    step("put inside deleted range", lambda: kv.Txn(rpc.TxnRequest(success=[put(b"k"), cut(b"a", b"z")])))
    step("too many ops", lambda: kv.Txn(rpc.TxnRequest(success=[put(b"k%d" % i) for i in range(129)])))
    step("too large", lambda: kv.Put(rpc.PutRequest(key=b"big", value=b"x" * (1600 * 1024))))
    step("far too large", lambda: kv.Put(rpc.PutRequest(key=b"big", value=b"x" * (3 * 1024 * 1024))).header.revision)

    def watched(count, *key, **options):
        events, cancel = client.watch(*key, **options)
        seen = []
        for event in events:
            before = event.prev_value.decode() if event.prev_value else None
            seen.append([type(event).__name__, event.key.decode(), event.value.decode(), event.mod_revision, before])
            if len(seen) == count:
                break
        cancel()
        return seen

    step("watch the past", lambda: watched(2, "py/a", start_revision=2))
    step("watch a range with previous values", lambda: watched(
        8, "py/", range_end="py0", start_revision=2, prev_kv=True))
    step("watch without puts", lambda: watched(
        2, "py/", range_end="py0", start_revision=2, filters=[etcd3.FILTER_NOPUT] if hasattr(etcd3, "FILTER_NOPUT") else [0]))

    lease = client.lease(60, lease_id=77)
    step("lease", lambda: [lease.id, lease.ttl])
    step("lease again", lambda: client.lease(60, lease_id=77).id)
    step("short lease", lambda: client.lease(1, lease_id=78).ttl)
    step("long lease", lambda: client.lease(9000000001, lease_id=79).ttl)
    step("put with lease", lambda: client.put("py/l1", "x", lease=lease).header.revision)
    step("get with lease", lambda: meta(client.get("py/l1")))
    step("renew", lambda: [answer.TTL for answer in lease.refresh()])
    step("lease granted", lambda: [lease.granted_ttl, lease.remaining_ttl > 50, [key.decode() for key in lease.keys]])
    step("revoke", lambda: lease.revoke())
    step("revoke again", lambda: lease.revoke())
    step("get what was revoked", lambda: meta(client.get("py/l1")))
    step("watch the end of a lease", lambda: watched(2, "py/l1", start_revision=2, prev_kv=True))
    step("renew what was revoked", lambda: [answer.TTL for answer in lease.refresh()])
    step("ask about what was revoked", lambda: [lease.granted_ttl, lease.remaining_ttl])

    step("compact", lambda: kv.Compact(rpc.CompactionRequest(revision=5)).header.revision)
    step("compact again", lambda: kv.Compact(rpc.CompactionRequest(revision=5)))
    step("compact the future", lambda: kv.Compact(rpc.CompactionRequest(revision=1 << 40)))
    step("read compacted", lambda: kv.Range(rpc.RangeRequest(key=b"py/a", revision=2)))
    step("read at compacted", lambda: [x.key.decode() for x in kv.Range(
        rpc.RangeRequest(key=b"py/", range_end=b"py0", revision=5)).kvs])
    step("members", lambda: [[m.name, list(m.peer_urls) != [], list(m.client_urls) != []] for m in client.members])
    step("hash", lambda: client.hash() != 0)
    step("status", lambda: (lambda s: [s.leader is not None, s.raft_index > 0, s.raft_term > 0])(client.status()))
    step("last", lambda: many(client.get_all()))


main()
