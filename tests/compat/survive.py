"""Keeps a lease alive and a watch open with the Python client `etcd3`, while the test kills the leader.

usage: survive.py HOST:PORT[,HOST:PORT..]    (only the first is used: this client knows one endpoint)

Prints one JSON object per line: ready, each event, each renewal. Ends when stdin does, with a summary.
"""

import json
import sys
import threading
import time

import etcd3

lock = threading.Lock()


def say(**what):
    with lock:
        print(json.dumps(what, sort_keys=True), flush=True)


def main():
    host, port = sys.argv[1].split(",")[0].split(":")
    client = etcd3.client(host=host, port=int(port), timeout=4)
    lease = client.lease(6)
    client.put("alive/python", "yes", lease=lease)

    def seen(response):
        for event in response.events:
            say(event=event.key.decode(), value=event.value.decode(), revision=event.mod_revision)

    client.add_watch_prefix_callback("watched/", seen)
    stop = threading.Event()

    def renew():
        while not stop.is_set():
            try:
                say(renewed=lease.refresh()[0].TTL)
            except Exception as error:  # a leader is being elected: tried again
                say(failed=type(error).__name__)
            time.sleep(0.3)

    thread = threading.Thread(target=renew)
    thread.start()
    say(ready=True, lease=lease.id)
    sys.stdin.read()
    stop.set()
    thread.join()
    value, about = client.get("alive/python")
    say(end=True, value=value.decode() if value else None, lease=about.lease_id if about else 0)


main()
