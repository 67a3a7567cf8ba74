// Drives one endpoint through the Node.js client `etcd3` and prints one JSON object per step; see client.py for what is compared.
// usage: node client.js http://HOST:PORT      (module path in NODE_PATH)
const { Etcd3 } = require('etcd3');

const client = new Etcd3({ hosts: process.argv[2], grpcOptions: { 'grpc.max_send_message_length': -1 } });

async function step(name, action) {
  let result;
  try {
    result = await action();
  } catch (error) {
    result = { raised: error.constructor.name, code: error.code, text: (error.message || '').replace(/http:\/\/\S+/g, 'URL') };
  }
  console.log(JSON.stringify({ step: name, result: result === undefined ? null : result }));
}

const pair = (kv) => ({
  key: kv.key.toString(),
  value: kv.value.toString(),
  create: kv.create_revision,
  mod: kv.mod_revision,
  version: kv.version,
  lease: kv.lease,
});

async function main() {
  await step('put', async () => (await client.put('js/a').value('1').exec()).header.revision);
  await step('put with previous', async () => (await client.put('js/a').value('2').getPrevious()).value.toString());
  await step('get', () => client.get('js/a').string());
  await step('get missing', () => client.get('js/none').string());
  await step('get whole', async () => {
    const answer = await client.get('js/a').exec();
    return { kvs: answer.kvs.map(pair), more: answer.more, count: answer.count, revision: answer.header.revision };
  });
  for (const name of ['b', 'c', 'd', 'e']) {
    await step('put ' + name, async () => (await client.put('js/' + name).value(name).exec()).header.revision);
  }
  await step('all by prefix', () => client.getAll().prefix('js/').strings());
  await step('keys', () => client.getAll().prefix('js/').keys());
  await step('sorted and limited', async () => {
    const answer = await client.getAll().prefix('js/').sort('Mod', 'Descend').limit(2).exec();
    return { kvs: answer.kvs.map(pair), more: answer.more, count: answer.count };
  });
  await step('count', () => client.getAll().prefix('js/').count());
  await step('old revision', () => client.get('js/a').revision(2).string());
  await step('touch', async () => (await client.put('js/a').touch()).header.revision);
  await step('transaction, success', async () => {
    const answer = await client
      .if('js/a', 'Value', '==', '2')
      .and('js/none', 'Create', '==', 0)
      .then(client.put('js/t').value('yes'), client.get('js/t'), client.delete().key('js/b'))
      .else(client.put('js/t').value('no'))
      .commit();
    return {
      succeeded: answer.succeeded,
      revision: answer.header.revision,
      kinds: answer.responses.map((response) => response.response),
      read: answer.responses[1].response_range.kvs.map(pair),
      deleted: answer.responses[2].response_delete_range.deleted,
    };
  });
  await step('transaction, failure', async () => {
    const answer = await client
      .if('js/a', 'Mod', '<', 1)
      .then(client.put('js/t').value('yes'))
      .else(client.get('js/t'))
      .commit();
    return { succeeded: answer.succeeded, read: answer.responses[0].response_range.kvs.map(pair) };
  });
  await step('compare-and-swap helper', async () => {
    await client.stm().transact(async (tx) => {
      const value = await tx.get('js/t').string();
      await tx.put('js/stm').value(value + '!');
    });
    return client.get('js/stm').string();
  });
  await step('delete', async () => (await client.delete().key('js/c')).deleted);
  await step('delete with previous', async () => (await client.delete().key('js/d').getPrevious()).map(pair));
  await step('delete by prefix', async () => (await client.delete().prefix('js/').exec()).deleted);
  await step('namespace', async () => {
    const inside = client.namespace('space/');
    await inside.put('k').value('v');
    return [await inside.getAll().strings(), await client.get('space/k').string()];
  });
  await step('future revision', () => client.get('js/a').revision(1e9).exec());
  await step('empty key', () => client.put('').value('x').exec());
  await step('unknown lease', () => client.put('js/l').value('x').lease(4711).exec());
  const watched = async (count, builder) => {
    const watcher = await builder.create();
    const seen = [];
    await new Promise((resolve, reject) => {
      const note = (type) => (kv, before) => {
        seen.push([type, pair(kv), before ? pair(before) : null]);
        if (seen.length === count) resolve();
      };
      watcher.on('put', note('put')).on('delete', note('delete'));
      setTimeout(() => reject(new Error(`saw ${seen.length} of ${count}`)), 10000).unref();
    });
    await watcher.cancel();
    return seen;
  };
  await step('watch the past', () => watched(12, client.watch().prefix('js/').startRevision('2').withPreviousKV()));
  await step('watch with a filter', () => watched(5, client.watch().prefix('js/').startRevision('2').ignore('put')));
  await step('lease', async () => {
    const lease = client.lease(60, { autoKeepAlive: false });
    const put = await lease.put('js/leased').value('x').exec();
    const id = await lease.grant();
    const renewed = Number((await lease.keepaliveOnce()).TTL);
    const about = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
    const before = (await client.get('js/leased').exec()).kvs[0];
    await lease.revoke();
    const after = (await client.get('js/leased').exec()).kvs.length;
    return [put.header.revision, renewed, about.grantedTTL, about.keys.map(String), before.lease === id, after];
  });
  await step('lease with an id', async () => (await client.leaseClient.leaseGrant({ ID: '4242', TTL: '30' })).TTL);
  await step('lease with an id again', async () => (await client.leaseClient.leaseGrant({ ID: '4242', TTL: '30' })).TTL);
  await step('revoke an unknown lease', () => client.leaseClient.leaseRevoke({ ID: '999' }));
  await step('ask about an unknown lease', async () => {
    const about = await client.leaseClient.leaseTimeToLive({ ID: '999', keys: true });
    return [about.TTL, about.grantedTTL];
  });
  await step('compact', async () => (await client.kv.compact({ revision: 4 })).header.revision);
  await step('read compacted', () => client.get('js/a').revision(2).exec());
  await step('members', async () => (await client.cluster.memberList({})).members.map((m) => [m.name, m.clientURLs.length, m.peerURLs.length]));
  await step('status', async () => {
    const status = await client.maintenance.status({});
    return [status.leader !== '0', Number(status.raftIndex) > 0, Number(status.dbSize) > 0];
  });
  await step('everything', async () => (await client.getAll().exec()).kvs.map(pair));
  client.close();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
