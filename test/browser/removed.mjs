// Somebody leaves, is kicked or is banned from a Matrix room while in its call,
// with a client that does not want to hear of it: it keeps its connection open
// and goes on sending. The server has to end it, in both directions.
import { JoinRequest, WrappedJoinRequest, WrappedJoinRequest_Compression } from '@livekit/protocol';
import { join } from 'node:path';
import { launch, modules, must, open, poll, rises, run, serve, sleep, sources, step } from './lib.mjs';
import { Account } from './matrix.mjs';

// stubborn makes the page's client unable to end anything.
function stubborn() {
  RTCPeerConnection.prototype.close = () => {};
  RTCPeerConnection.prototype.removeTrack = () => {};
  RTCRtpSender.prototype.replaceTrack = async () => {};
  RTCRtpTransceiver.prototype.stop = () => {};
  MediaStreamTrack.prototype.stop = () => {};
}

// validate asks whether a token is good for a connection, on both paths.
async function validate(url, jwt) {
  const http = url.replace(/^ws/, 'http').replace(/\/$/, '');
  const request = new WrappedJoinRequest({ compression: WrappedJoinRequest_Compression.NONE, joinRequest: new JoinRequest({ clientInfo: { sdk: 1, version: '2.23.0', protocol: 17 } }).toBinary() });
  const encoded = Buffer.from(request.toBinary()).toString('base64').replaceAll('+', '-').replaceAll('/', '_');
  const out = {};
  for (const path of [`/rtc/validate?access_token=${jwt}`, `/rtc/v1/validate?access_token=${jwt}&join_request=${encodeURIComponent(encoded)}`]) {
    const res = await fetch(http + path);
    out[path.slice(0, path.indexOf('?'))] = `${res.status} ${(await res.text()).trim()}`;
  }
  return out;
}

await run(async (config) => {
  const base = await serve({ mounts: { '/': new URL('./pages', import.meta.url).pathname, '/livekit/': join(modules, 'livekit-client', 'dist') } });
  const browser = await launch(config, sources.red);
  const alice = await Account.register(config.server, 'alice');
  const bob = await Account.register(config.server, 'bob');
  const carol = await Account.register(config.server, 'carol');
  const room = await alice.createRoom({ preset: 'private_chat', invite: [bob.user] });

  step('a token before joining');
  for (const who of [bob, carol]) {
    await who.livekit(config.server, room).then(() => must(false, `${who.name} got a token without being in the room`), (e) => must(e.status === 403, 'refused with another status', e.message));
  }
  await bob.join(room);

  const peers = {};
  for (const [name, account, extra] of [['alice', alice], ['bob', bob, { script: stubborn }]]) {
    step(`${name} connects`);
    const { url, jwt } = await account.livekit(config.server, room);
    const page = await open(browser, name, `${base}/livekit.html`, { init: extra });
    const call = (m, ...args) => page.evaluate(([method, a]) => window.peer[method](...a), [m, args]);
    const me = await call('connect', { url, token: jwt, options: { maxRetries: 0 } });
    peers[name] = { page, call, url, jwt, identity: me.identity, inbound: async () => (await page.evaluate(() => window.__probe.inbound())).reduce((n, s) => n + s.packets, 0) };
  }
  const { alice: a, bob: b } = peers;
  must(b.identity === `${bob.user}:${bob.device}`, 'the identity is not user:device', b.identity);
  await a.call('publish', { camera: true, microphone: true });
  await b.call('publish', { camera: true, microphone: true });
  for (const p of [a, b]) await rises('both get packets', p.inbound, { by: 100 });
  const before = await validate(b.url, b.jwt);
  must(Object.values(before).every((v) => v.startsWith('200')), 'the token was no good in the first place', before);

  step(config.how);
  if (config.how === 'leave') await bob.leave(room);
  else await alice[config.how](room, bob.user);
  const answered = Date.now();
  const after = await validate(b.url, b.jwt);
  must(Object.values(after).every((v) => v.startsWith('401')), 'the old token is still good', after);
  await sleep(Math.max(0, answered + 1_000 - Date.now()));
  step('no packets a second later');
  const sent = await b.page.evaluate(() => window.__probe.sent());
  const at = [await a.inbound(), await b.inbound()];
  await sleep(2_500);
  const now = [await a.inbound(), await b.inbound()];
  must(now[0] === at[0], 'alice still gets packets of bob', [at[0], now[0]]);
  must(now[1] === at[1], 'bob still gets packets', [at[1], now[1]]);
  must((await b.page.evaluate(() => window.__probe.sent())) >= sent, 'bob has lost count');
  await poll('alice sees that bob is gone', async () => (await a.page.evaluate(() => window.peer.events.filter((e) => e.name === 'left'))).some((e) => e.who === b.identity), { ms: 5_000 });

  step('bob comes back with the old token');
  const page = await open(browser, 'bob again', `${base}/livekit.html`);
  const again = await page.evaluate(([url, token]) => window.peer.connect({ url, token, options: { maxRetries: 0 } }).then(() => 'connected', (e) => `${e.name}: ${e.message}`), [b.url, b.jwt]);
  must(again !== 'connected', 'the old token let bob in again');
  await bob.livekit(config.server, room).then(() => must(false, 'bob got a new token'), (e) => must(e.status === 403, 'refused with another status', e.message));

  if (config.how !== 'ban') {
    step('bob is invited again and may come back');
    await alice.invite(room, bob.user);
    await bob.join(room);
    const fresh = await bob.livekit(config.server, room);
    await page.evaluate(([url, token]) => window.peer.connect({ url, token, options: { maxRetries: 0 } }), [fresh.url, fresh.jwt]);
    await poll('bob receives alice again', async () => (await page.evaluate((id) => window.peer.received(id), a.identity)).frames > 5);
  }
  return { before, after, again };
});
