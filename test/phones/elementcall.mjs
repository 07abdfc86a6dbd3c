// A telephone in a call of Element Call's: a tile, and sound both ways. If the
// call is encrypted the telephone is refused until the room allows it, and its
// device says what it is.
import { ask, launch, must, poll, run, step } from '../browser/lib.mjs';
import { Visitor, site } from '../browser/element.mjs';
import { Account } from '../browser/matrix.mjs';
import { record } from './record.mjs';

await run(async (config) => {
  const base = await site(config, config.mode);
  const account = await Account.register(config.server, 'alice');
  const room = await account.createRoom({
    name: 'Board meeting',
    preset: 'private_chat',
    initial_state: config.encrypted ? [{ type: 'm.room.encryption', state_key: '', content: { algorithm: 'm.megolm.v1.aes-sha2' } }] : [],
    power_level_content_override: { events: { 'org.matrix.msc3401.call.member': 0, 'org.matrix.msc4143.rtc.member': 0 } },
  });
  const trunkhall = async (method, path, body) => {
    const res = await fetch(`${config.server.homeserver}/_trunkhall/phones/v1${path}`, {
      method, headers: { authorization: `Bearer ${account.token}`, 'content-type': 'application/json' }, body: body && JSON.stringify(body),
    });
    const json = await res.json();
    must(res.ok, `${method} ${path}: ${res.status}`, json);
    return json;
  };
  const settings = () => trunkhall('GET', `/rooms/${encodeURIComponent(room)}`);

  const alice = await Visitor.open(config, await launch(config, null, { args: [`--use-file-for-fake-audio-capture=${config.wav}`] }), base, 'alice');
  await alice.login(account);
  await alice.enter(`${base}/room/#/?roomId=${encodeURIComponent(room)}&viaServers=${encodeURIComponent(account.serverName)}`);
  await poll('alice is a member of the call', async (saw) => {
    const members = await account.callMembers(room);
    saw(members);
    return members.length === 1;
  });

  await poll('alice sees herself', async (saw) => {
    const n = await alice.tiles();
    saw(n);
    return n === 1;
  });
  step('the room says nothing of telephones yet');
  const before = await settings();
  must(before.encrypted === config.encrypted && before.e2ee !== 'allow', 'an encrypted room allows telephones without being asked', before);
  must(before.pin === '', 'the room has a PIN that nobody asked for', before);
  const { pin } = await trunkhall('POST', `/rooms/${encodeURIComponent(room)}/pin`, {});
  must(/^[0-9]{6,}$/.test(pin) && (await settings()).pin === pin, 'the room has no PIN', pin);
  if (config.encrypted) {
    step('a telephone is refused');
    await ask('refused', pin);
    must((await account.callMembers(room)).length === 1, 'a telephone is in a call that does not allow it');
    must((await alice.tiles()) === 1, 'alice sees somebody', await alice.tiles());

    step('the room allows telephones');
    await trunkhall('PUT', `/rooms/${encodeURIComponent(room)}/settings`, { e2ee: 'allow' });
  }
  await ask('dial', pin);
  const ghost = await poll('the telephone is a member of the call', async (saw) => {
    const members = await account.callMembers(room);
    saw(members);
    return members.find((m) => m.startsWith('@_phone_'));
  });
  await poll('alice sees a second tile', async (saw) => {
    const n = await alice.tiles();
    saw(n);
    return n === 2;
  });

  if (config.encrypted) {
    step('its device says what it is');
    const [user, device] = ghost.split(' ');
    const keys = await account.request('POST', '/v3/keys/query', { device_keys: { [user]: [] } });
    const name = keys.device_keys?.[user]?.[device]?.unsigned?.device_display_name ?? '';
    must(/not end-to-end encrypted/i.test(name), 'the device does not say that the sound is not encrypted beyond it', keys.device_keys);
  }

  // What is recorded is measured by the Go test.
  const file = `${config.dir}/alice.wav`;
  await poll('alice hears the telephone', async (saw) => {
    await record(alice.page, { ms: 2000, file });
    const problem = await ask('measure', file);
    saw(problem);
    return !problem;
  });
  // A browser on a busy machine skips now and then: a few tries are allowed.
  const well = async (what, listen) => {
    let problem;
    for (let i = 0; i < 5; i++) if (!(problem = await listen())) return;
    must(false, what, problem);
  };
  await well('alice does not hear the telephone well', async () => {
    await record(alice.page, { ms: 4000, file });
    return ask('measure', file);
  });
  await well('the telephone does not hear alice well', () => ask('heard'));
  const now = await settings();
  must(now.legs.length === 1 && now.legs[0].encrypted === config.encrypted, 'the leg is not encrypted as the room is', now.legs);

  step('the telephone raises its hand');
  const hand = () => alice.page.evaluate(() => document.body.innerText.includes('✋'));
  must(!(await hand()), 'a hand is up already');
  await ask('hand');
  await poll('alice sees the hand', hand);
  await ask('hand');
  await poll('the hand is down', async () => !(await hand()));

  step('the telephone hangs up');
  await ask('hangup');
  await poll('the telephone is gone', async (saw) => {
    const members = await account.callMembers(room);
    const n = await alice.tiles();
    saw({ members, n });
    return members.length === 1 && n === 1;
  });
  return { ghost };
});
