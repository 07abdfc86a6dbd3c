// Two matrix-js-sdk clients, each with Rust crypto, in one encrypted room: what
// Element does, without the pictures.
import { randomUUID } from 'node:crypto';
import * as sdk from 'matrix-js-sdk';
import { logger } from 'matrix-js-sdk/lib/logger.js';
import { must, poll, run, step } from '../browser/lib.mjs';

logger.setLevel('warn');
// Everything the SDK says goes to the log; stdout is for the result.
for (const level of ['log', 'info', 'debug', 'warn', 'error', 'trace']) {
  console[level] = (...args) => process.stderr.write(`${level}: ${args.map((a) => (a instanceof Error ? a.stack : typeof a === 'string' ? a : JSON.stringify(a))).join(' ')}\n`.slice(0, 2000));
}

// join registers an account and starts a client that syncs.
async function join(config, name) {
  step(`${name} registers`);
  const baseUrl = config.server.homeserver;
  const account = await sdk.createClient({ baseUrl }).registerRequest({
    username: `${name}-${randomUUID().slice(0, 8)}`, password: randomUUID(), initial_device_display_name: 'test', auth: { type: 'm.login.dummy' },
  }).catch(async (e) => {
    // The first request starts the session when the server insists on it.
    must(e.httpStatus === 401 && e.data.session, 'registration was refused', e.data ?? e.message);
    return sdk.createClient({ baseUrl }).registerRequest({
      username: `${name}-${randomUUID().slice(0, 8)}`, password: randomUUID(), auth: { type: 'm.login.dummy', session: e.data.session },
    });
  });
  const client = sdk.createClient({ baseUrl, userId: account.user_id, deviceId: account.device_id, accessToken: account.access_token });
  step(`${name} starts`);
  await client.initRustCrypto({ useIndexedDB: false });
  await client.startClient({ initialSyncLimit: 20 });
  await poll(`${name} has synced`, () => client.isInitialSyncComplete());
  return client;
}

// reads waits until the client has decrypted that text in that room.
const reads = (who, client, room, text, sender) => poll(`${who} reads "${text}"`, (saw) => {
  const events = client.getRoom(room)?.getLiveTimeline().getEvents() ?? [];
  saw(events.map((e) => `${e.getWireType()}/${e.getType()}${e.isDecryptionFailure() ? ' undecryptable' : ''}`));
  return events.some((e) => e.getType() === 'm.room.message' && e.getContent().body === text && e.getSender() === sender && e.isEncrypted());
});

await run(async (config) => {
  const alice = await join(config, 'alice');
  const bob = await join(config, 'bob');

  step('alice sets up cross-signing');
  await alice.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: async (upload) => { await upload(null); } });
  must(await alice.getCrypto().isCrossSigningReady(), 'cross-signing is not ready');

  step('alice creates an encrypted room and invites bob');
  const { room_id: room } = await alice.createRoom({
    preset: 'private_chat', name: 'two clients', invite: [bob.getUserId()],
    initial_state: [{ type: 'm.room.encryption', state_key: '', content: { algorithm: 'm.megolm.v1.aes-sha2' } }],
  });
  await poll('bob sees the invitation', () => bob.getRoom(room)?.getMyMembership() === 'invite');
  await bob.joinRoom(room);
  await poll('both see two members', (saw) => {
    const counts = [alice, bob].map((c) => c.getRoom(room)?.getJoinedMemberCount());
    saw(counts);
    return counts.every((n) => n === 2);
  });
  await poll('both know that the room is encrypted', async () =>
    (await Promise.all([alice, bob].map((c) => c.getCrypto().isEncryptionEnabledInRoom(room)))).every(Boolean));
  await poll('bob knows the devices of alice', async () => (await bob.getCrypto().getUserDeviceInfo([alice.getUserId()], true)).get(alice.getUserId())?.size > 0);

  await alice.sendTextMessage(room, 'hello bob');
  await reads('bob', bob, room, 'hello bob', alice.getUserId());
  await bob.sendTextMessage(room, 'hello alice');
  await reads('alice', alice, room, 'hello alice', bob.getUserId());
  await poll('bob sees the cross-signing keys of alice', async () => bob.getCrypto().userHasCrossSigningKeys(alice.getUserId(), true));

  step('what a stranger may not do');
  const carol = await join(config, 'carol');
  await carol.joinRoom(room).then(() => must(false, 'carol joined without an invitation'), (e) => must(e.errcode === 'M_FORBIDDEN', 'carol was refused with another error', e.data));

  await alice.sendTyping(room, true, 20_000);
  await poll('bob sees alice typing', () => bob.getRoom(room).getMember(alice.getUserId())?.typing);
  const lastEvent = alice.getRoom(room).getLiveTimeline().getEvents().at(-1);
  await alice.sendReadReceipt(lastEvent);
  await poll('bob sees that alice has read it', () => bob.getRoom(room).getEventReadUpTo(alice.getUserId()) === lastEvent.getId());

  step('alice redacts her message');
  const mine = alice.getRoom(room).getLiveTimeline().getEvents().find((e) => e.getContent().body === 'hello bob');
  await alice.redactEvent(room, mine.getId());
  await poll('bob sees the redaction', () => bob.getRoom(room).findEventById(mine.getId())?.isRedacted());

  // Call members: a delayed event that is restarted, then sent, and a sticky event.
  step('delayed events');
  const key = `_${alice.getUserId()}_${alice.getDeviceId()}_m.call`;
  const type = 'org.matrix.msc3401.call.member';
  await alice.sendStateEvent(room, type, { application: 'm.call', call_id: '', scope: 'm.room', device_id: alice.getDeviceId(), expires: 14_400_000, focus_active: { type: 'livekit', focus_selection: 'multi_sfu' }, foci_preferred: [] }, key);
  const { delay_id: delay } = await alice._unstable_sendDelayedStateEvent(room, { delay: 600_000 }, type, {}, key);
  must(delay, 'no delay_id');
  await poll('bob sees the call member', () => bob.getRoom(room).currentState.getStateEvents(type, key)?.getContent().application === 'm.call');
  await alice._unstable_restartScheduledDelayedEvent(delay);
  must(Object.keys(bob.getRoom(room).currentState.getStateEvents(type, key).getContent()).length, 'the leave was sent early');
  await alice._unstable_sendScheduledDelayedEvent(delay);
  await poll('bob sees the leave', () => Object.keys(bob.getRoom(room).currentState.getStateEvents(type, key).getContent()).length === 0);

  for (const c of [alice, bob, carol]) c.stopClient();
  return { room };
});
