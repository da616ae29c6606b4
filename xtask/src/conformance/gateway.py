"""etcd3gw against the JSON gateway: what the library and plain requests are answered."""
import base64
import json
import sys
import urllib.error
import urllib.request

import etcd3gw

port = int(sys.argv[1].rsplit(":", 1)[1])
client = etcd3gw.client(host="127.0.0.1", port=port)


# What readers of JSON say about what they cannot read: each has its own words.
UNREAD = ("proto:", "invalid", "expected")


def b(text):
    return base64.b64encode(text.encode()).decode()


def ask(path, body):
    """One request as a person would send it; headers' numbers that cannot match are dropped."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=body.encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            code, told = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        code, told = error.code, error.read().decode()
    try:
        told = json.loads(told)
        header = told.get("header", {})
        for name in ("cluster_id", "member_id", "raft_term"):
            header.pop(name, None)
        told.pop("error", None)  # Twice the message; since 3.7 etcd has it once.
        if code == 400 and told.get("message", "").startswith(UNREAD):
            told["message"] = "unread"
        if "leases" in told:
            # Those that the servers have numbered are long, and read as the same later.
            told["leases"].sort(key=lambda lease: (len(lease["ID"]), lease["ID"]))
        if path == "/v3/lock/lock":
            told.pop("key", None)  # It holds a lease's number.
        told = json.dumps(told, sort_keys=True)
    except ValueError:
        pass
    print(path, body, code, told)


print("put", client.put("foo", "bar"))
print("get", client.get("foo"))
print("get meta", client.get("foo", metadata=True))
print("missing", client.get("nothing"))
print("create", client.create("one", "1"), client.create("one", "2"))
print("replace", client.replace("one", "1", "2"), client.replace("one", "1", "3"))
print("prefix", client.get_prefix("o"))
print("all", client.get_all(sort_order="descend", sort_target="key"))
lease = client.lease(ttl=100)
print("leased", client.put("leased", "x", lease=lease), lease.keys(), 90 < lease.ttl() <= 100)
print("refresh", lease.refresh() == 100)
print("revoke", lease.revoke(), client.get("leased"))
lock = client.lock("mine", ttl=10)
print("lock", lock.acquire(), lock.is_acquired(), lock.release())
events, cancel = client.watch("seen", start_revision=1)
client.put("seen", "1")
client.delete("seen")
for event in (next(events), next(events)):
    print("event", json.dumps(event, sort_keys=True, default=str))
cancel()
print("members", len(list(client.members())), client.status()["version"] != "")
ask("/v3/kv/put", json.dumps({"key": b("k"), "value": b("v")}))
ask("/v3/kv/put", json.dumps({"key": b("k"), "value": b("w"), "prev_kv": True}))
ask("/v3/kv/range", json.dumps({"key": b("k")}))
ask("/v3/kv/range", json.dumps({"key": b("k"), "revision": "999999"}))
ask("/v3/kv/range", json.dumps({"key": b("k"), "limit": 1}))
ask("/v3/kv/range", json.dumps({"key": b("k"), "sort_order": "DESCEND", "sort_target": "MOD"}))
ask("/v3/kv/range", "{}")
ask("/v3/kv/range", "nonsense")
ask("/v3/kv/range", json.dumps({"key": "!"}))
ask("/v3/kv/range", json.dumps({"unknown": 1}))
ask("/v3/kv/deleterange", json.dumps({"key": b("k"), "prev_kv": True}))
ask("/v3/kv/txn", json.dumps({
    "compare": [{"key": b("k"), "result": "EQUAL", "target": "VERSION", "version": "0"}],
    "success": [{"requestPut": {"key": b("k"), "value": b("t")}}],
    "failure": [{"requestRange": {"key": b("k")}}],
}))
ask("/v3/kv/txn", json.dumps({
    "compare": [{"key": b("k"), "result": "GREATER", "target": "CREATE", "create_revision": 99}],
    "success": [],
    "failure": [{"request_range": {"key": b("k")}}, {"request_delete_range": {"key": b("k")}}],
}))
ask("/v3/kv/compaction", json.dumps({"revision": 5}))
ask("/v3/kv/compaction", json.dumps({"revision": 5}))
ask("/v3/lease/grant", json.dumps({"TTL": 60, "ID": 77}))
ask("/v3/lease/grant", json.dumps({"TTL": 60, "ID": 77}))
ask("/v3/lease/timetolive", json.dumps({"ID": 78, "keys": True}))
ask("/v3/lease/leases", "{}")
ask("/v3/lease/keepalive", json.dumps({"ID": 78}))
ask("/v3/lease/revoke", json.dumps({"ID": 77}))
ask("/v3/lease/revoke", json.dumps({"ID": 77}))
ask("/v3/auth/enable", "{}")
ask("/v3/auth/status", "{}")
ask("/v3/auth/user/add", json.dumps({"name": "u", "password": "p"}))
ask("/v3/auth/user/get", json.dumps({"name": "u"}))
ask("/v3/auth/user/get", json.dumps({"name": "ghost"}))
ask("/v3/auth/role/add", json.dumps({"name": "r"}))
ask("/v3/auth/role/grant", json.dumps(
    {"name": "r", "perm": {"permType": "READWRITE", "key": b("a"), "range_end": b("b")}}))
ask("/v3/auth/role/get", json.dumps({"role": "r"}))
ask("/v3/auth/role/list", "{}")
ask("/v3/election/proclaim", "{}")
ask("/v3/election/leader", json.dumps({"name": b("nobody")}))
ask("/v3/lock/lock", "{}")
ask("/v3/maintenance/alarm", "{}")
ask("/v3/maintenance/nothing", "{}")
ask("/v3beta/kv/range", json.dumps({"key": b("foo")}))
print("done")
