// Keeps a lease alive and a watch open with the Node.js client `etcd3`, while the test kills the leader; see survive.py.
// usage: node survive.js HOST:PORT[,HOST:PORT..]      (module path in NODE_PATH)
const { Etcd3 } = require('etcd3');

// One endpoint, as in survive.py: with several, this client rests for most of a minute after one of them was lost.
const client = new Etcd3({ hosts: `http://${process.argv[2].split(',')[0]}` });
const say = (what) => console.log(JSON.stringify(what));

async function main() {
  const lease = client.lease(6);
  lease.on('keepaliveSucceeded', (answer) => say({ renewed: Number(answer.TTL) }));
  lease.on('keepaliveFailed', (error) => say({ failed: error.constructor.name }));
  lease.on('lost', (error) => say({ lost: error.message }));
  await lease.put('alive/node').value('yes').exec();
  const watcher = await client.watch().prefix('watched/').create();
  watcher.on('put', (kv) => say({ event: kv.key.toString(), value: kv.value.toString(), revision: Number(kv.mod_revision) }));
  say({ ready: true, lease: await lease.grant() });
  // More often than the client would by itself.
  const timer = setInterval(() => lease.keepaliveOnce().catch((error) => say({ failed: error.constructor.name })), 300);
  await new Promise((resolve) => {
    process.stdin.resume();
    process.stdin.on('end', resolve);
  });
  clearInterval(timer);
  const answer = await client.get('alive/node').exec();
  const kv = answer.kvs[0];
  say({ end: true, value: kv ? kv.value.toString() : null, lease: kv ? kv.lease : '0' });
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
