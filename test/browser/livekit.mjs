// livekit-client in Chromium against our LiveKit protocol. The configuration's
// "scenario" names one of the functions at the end.
import { SignalResponse } from '@livekit/protocol';
import { join } from 'node:path';
import { launch, modules, must, near, open, poll, rises, roomName, run, serve, shows, sleep, sources, step, still, token } from './lib.mjs';

// A peer is one page with one participant.
async function peer(config, browser, base, room, identity, { grants, dual = false, ice, transport, key, label, autoSubscribe = true } = {}) {
  const page = await open(browser, label ?? identity, `${base}/livekit.html`);
  const sockets = [];
  const joins = [];
  page.on('websocket', (ws) => {
    sockets.push(new URL(ws.url()).pathname);
    ws.on('framereceived', ({ payload }) => {
      if (typeof payload === 'string') return;
      try {
        const m = SignalResponse.fromBinary(payload).message;
        if (m.case === 'join') joins.push(m.value);
      } catch { /* the client will complain of it by itself */ }
    });
  });
  const p = {
    page, identity, sockets, joins,
    call: (method, ...args) => page.evaluate(([m, a]) => window.peer[m](...a), [method, args]),
    events: (name) => page.evaluate((n) => window.peer.events.filter((e) => !n || e.name === n), name),
    received: (of, source) => p.call('received', of.identity, source),
    frames: (of) => async () => (await p.received(of)).frames,
  };
  step(`${identity} connects`);
  const options = {};
  if (ice) options.rtcConfig = { iceServers: ice, iceTransportPolicy: transport ? 'relay' : 'all' };
  p.me = await p.call('connect', {
    url: config.server.livekit_url, token: token(config.server, identity, room, grants),
    room: { singlePeerConnection: !dual }, options: { ...options, autoSubscribe, maxRetries: 0 }, key,
  });
  must(p.me.identity === identity, `connected as ${p.me.identity}`);
  return p;
}

const site = () => serve({ mounts: { '/': new URL('./pages', import.meta.url).pathname, '/livekit/': join(modules, 'livekit-client', 'dist') } });

// decodes waits until the watcher decodes new frames of the other's camera.
const decodes = (watcher, other, options) =>
  rises(`${watcher.identity} decodes the video of ${other.identity}`, watcher.frames(other), { by: 5, ...options });

// sounds waits until sound, not silence, comes out of the decoder.
const sounds = (watcher, other) =>
  rises(`${watcher.identity} hears ${other.identity}`, async () => (await watcher.received(other, 'microphone')).energy, { by: 0.01 });

// data checks data both ways on one kind of channel. A reliable message is sent
// once and comes once; a lossy one may be lost, so it is sent until it comes.
async function data(a, b, reliable, { again = !reliable } = {}) {
  const kind = reliable ? 'reliable' : 'lossy';
  for (const [from, to] of [[a, b], [b, a]]) {
    const texts = [];
    const got = () => to.page.evaluate((t) => window.peer.messages.filter((m) => t.includes(m.text)), texts);
    await poll(`${to.identity} gets a ${kind} message of ${from.identity}`, async (saw) => {
      if (again || !texts.length) {
        texts.push(`${kind} ${texts.length} from ${from.identity} ${Math.random()}`);
        await from.call('send', texts.at(-1), reliable);
      }
      const messages = await got();
      saw(messages);
      return messages.some((m) => m.from === from.identity && m.reliable === reliable);
    }, { every: 500 });
    const messages = await got();
    if (reliable) must(new Set(messages.map((m) => m.text)).size === messages.length, 'a reliable message came twice', messages);
  }
}

// switches asks for both sizes and waits for each to arrive, in a picture that
// goes on moving.
async function switches(watcher, other) {
  for (const [width, height] of [[320, 180], [640, 360], [320, 180]]) {
    await watcher.call('wantSize', other.identity, width, height);
    await poll(`${watcher.identity} gets ${width}x${height} of ${other.identity}`, async (saw) => {
      const r = await watcher.received(other);
      saw(r);
      return r.width === width && r.height === height;
    });
    await decodes(watcher, other);
  }
}

const scenarios = {
  // Two participants, everything ordinary, in one connection mode and codec.
  async call(config) {
    const { dual, codec } = config;
    const base = await site();
    const browser = await launch(config, sources.red);
    const room = roomName();
    const a = await peer(config, browser, base, room, 'alice', { dual });
    const b = await peer(config, browser, base, room, 'bob', { dual });
    const path = dual ? '/rtc' : '/rtc/v1';
    for (const p of [a, b]) must(p.sockets.every((s) => s === path), `${p.identity} was not on ${path}`, p.sockets);
    must(a.joins[0].iceServers.some((s) => s.urls.some((u) => u.startsWith('turn:'))), 'the join response names no TURN server', a.joins[0].iceServers);

    step('alice and bob publish');
    const simulcast = config.simulcast !== false;
    await a.call('publish', { camera: true, microphone: true, codec, simulcast });
    await b.call('publish', { camera: true, microphone: true, codec, simulcast });
    await decodes(b, a);
    await decodes(a, b);
    await sounds(b, a);
    await sounds(a, b);
    await shows('bob sees the colour of alice', b.page, [sources.red]);
    const got = await b.received(a);
    must(got.codec?.toLowerCase() === `video/${codec}`, `the video is not ${codec}`, got);
    const live = await b.page.evaluate(() => window.__probe.connections.filter((c) => c.connectionState === 'connected').length);
    must(live === (dual ? 2 : 1), `${live} connections are up in ${dual ? 'dual' : 'single'} mode`);

    if (simulcast) await switches(b, a);
    await data(a, b, true);
    await data(a, b, false);

    step('alice mutes her microphone');
    await a.call('setMicrophone', false);
    await poll('bob sees the mute', async () => (await b.events('muted')).some((e) => e.who === 'alice' && e.source === 'microphone'));
    await a.call('setMicrophone', true);
    await poll('bob sees the end of the mute', async () => (await b.events('unmuted')).some((e) => e.who === 'alice' && e.source === 'microphone'));
    await sounds(b, a);

    await a.call('leave');
    await poll('bob sees that alice has left', async () => (await b.events('left')).some((e) => e.who === 'alice'), { ms: 10_000 });
    must((await b.events('disconnected')).length === 0 && (await b.events('reconnecting')).length === 0, 'bob was disturbed', await b.events());
    return { path, codec: got.codec, bytes: got.bytes };
  },

  // The signal connection breaks, then everything; both sides, one after the other.
  async reconnect(config) {
    const { dual } = config;
    const base = await site();
    const browser = await launch(config, sources.green);
    const room = roomName();
    const a = await peer(config, browser, base, room, 'alice', { dual });
    const b = await peer(config, browser, base, room, 'bob', { dual });
    await a.call('publish', { camera: true, microphone: true });
    await decodes(b, a);

    for (const p of [a, b]) {
      const other = p === a ? b : a;
      const before = (await other.call('remote', p.identity)).sid;
      const lost = (await b.events('unsubscribed')).length;
      const resumed = (await p.events('reconnected')).length;
      step(`${p.identity} loses the signal connection`);
      await p.call('simulate', 'signal-reconnect');
      await poll(`${p.identity} has resumed`, async () => (await p.events('reconnected')).length > resumed);
      must((await p.events('reconnecting')).length === 0, `${p.identity} fell back to a full reconnect`, await p.events());
      must((await other.call('remote', p.identity)).sid === before, 'a resume changed the session ID');
      must((await b.events('unsubscribed')).length === lost, 'a resume interrupted the video', await b.events());
      await decodes(b, a);
      await data(a, b, true);
    }

    for (const p of [a, b]) {
      const other = p === a ? b : a;
      const before = (await other.call('remote', p.identity)).sid;
      const done = (await p.events('reconnected')).length;
      step(`${p.identity} loses everything`);
      await p.call('simulate', 'full-reconnect');
      await poll(`${p.identity} is connected again`, async () => (await p.events('reconnected')).length > done);
      await poll(`${other.identity} sees the new session of ${p.identity}`, async (saw) => {
        const now = await other.call('remote', p.identity);
        saw(now);
        return now && now.sid !== before;
      });
      await decodes(b, a);
      await sounds(b, a);
      // livekit-client says that it is connected again some two seconds before it
      // is done: what it is told to send until then it keeps, and never sends.
      await data(a, b, true, { again: true });
    }
    for (const p of [a, b]) must((await p.events('disconnected')).length === 0, `${p.identity} was thrown out`, await p.events());
    return { sockets: [a.sockets.length, b.sockets.length] };
  },

  // Both participants may use nothing but our TURN server.
  async relay(config) {
    const { dual, transport } = config;
    const base = await site();
    const browser = await launch(config, sources.blue);
    const room = roomName();
    // What the server hands out itself, in the join response of somebody who publishes nothing.
    const scout = await peer(config, browser, base, room, 'scout');
    const offered = scout.joins[0].iceServers.map((s) => ({ urls: s.urls, username: s.username, credential: s.credential }));
    const ice = offered
      .map((s) => ({ ...s, urls: s.urls.filter((u) => u.startsWith('turn:') && (u.includes('transport=tcp') ? 'tcp' : 'udp') === transport) }))
      .filter((s) => s.urls.length);
    must(ice.length, `no TURN server over ${transport} is offered`, offered.map((s) => s.urls));
    await scout.call('leave');

    const a = await peer(config, browser, base, room, 'alice', { dual, ice, transport });
    const b = await peer(config, browser, base, room, 'bob', { dual, ice, transport });
    await a.call('publish', { camera: true, microphone: true });
    await decodes(b, a);
    await sounds(b, a);
    await data(a, b, true);
    const paths = [];
    for (const p of [a, b]) {
      for (const path of await p.page.evaluate(() => window.__probe.paths())) {
        if (path.state !== 'connected') continue;
        paths.push(path);
        must(path.local === 'relay' && path.relay === transport, `${p.identity} is not relayed over ${transport}`, path);
      }
    }
    must(paths.length >= 2, 'fewer connections than participants', paths);

    // The other way round: wrong credentials must not get through.
    step('a stranger tries with a wrong credential');
    const wrong = ice.map((s) => ({ ...s, credential: `${s.credential}x` }));
    const page = await open(browser, 'stranger', `${base}/livekit.html`);
    const got = await page.evaluate(async (iceServers) => {
      const pc = new RTCPeerConnection({ iceServers, iceTransportPolicy: 'relay' });
      pc.createDataChannel('x');
      let candidates = 0;
      const ended = new Promise((r) => { pc.onicegatheringstatechange = () => pc.iceGatheringState === 'complete' && r(); });
      pc.onicecandidate = (e) => { if (e.candidate?.candidate) candidates++; };
      await pc.setLocalDescription();
      await Promise.race([ended, new Promise((r) => setTimeout(r, 15000))]);
      pc.close();
      return candidates;
    }, wrong);
    must(got === 0, 'a wrong credential was given a relay');
    return { paths };
  },

  // A network that lets no UDP through, and no TURN: the media goes over TCP,
  // straight to the server.
  async noudp(config) {
    const base = await site();
    const browser = await launch(config, sources.green, { args: ['--webrtc-ip-handling-policy=disable_non_proxied_udp', '--force-webrtc-ip-handling-policy=disable_non_proxied_udp'] });
    const room = roomName();
    const a = await peer(config, browser, base, room, 'alice', { ice: [] });
    const b = await peer(config, browser, base, room, 'bob', { dual: true, ice: [] });
    await a.call('publish', { camera: true, microphone: true });
    await decodes(b, a);
    await sounds(b, a);
    await data(a, b, true);
    const paths = [];
    for (const p of [a, b]) paths.push(...(await p.page.evaluate(() => window.__probe.paths())).filter((x) => x.state === 'connected'));
    must(paths.length >= 2 && paths.every((p) => p.protocol === 'tcp' && p.local !== 'relay'), 'not everything goes over TCP', paths);
    return { paths };
  },

  // End-to-end encryption: the right key decodes, a wrong one gets bytes and no picture.
  async e2ee(config) {
    const { codec } = config;
    const base = await site();
    const browser = await launch(config, sources.red);
    const room = roomName();
    const a = await peer(config, browser, base, room, 'alice', { key: 'the right key' });
    const b = await peer(config, browser, base, room, 'bob', { key: 'the right key' });
    const c = await peer(config, browser, base, room, 'carol', { key: 'another key' });
    await a.call('publish', { camera: true, microphone: true, codec });
    await decodes(b, a);
    await sounds(b, a);
    await shows('bob sees the colour of alice', b.page, [sources.red]);
    await poll('the encryption is told to others', async (saw) => {
      const r = await b.call('remote', 'alice');
      saw(r);
      return r.tracks.length === 2 && r.tracks.every((t) => t.encrypted);
    });
    await rises('carol gets the bytes', async () => (await c.received(a)).bytes, { by: 20_000 });
    const seen = await c.received(a);
    must(seen.frames === 0, 'carol decodes with a wrong key', seen);
    const pictures = await c.page.evaluate(() => window.__probe.pictures());
    must(!pictures.some((p) => p.rgb && near(p.rgb, sources.red.rgb)), 'carol sees the picture with a wrong key', pictures);

    step('carol gets the right key');
    await c.call('setKey', 'the right key');
    await decodes(c, a);
    return { bytesWithoutKey: seen.bytes };
  },

  // Many publishers: the one connection grows by more sections than it began
  // with, and sections of those who left are used again.
  async crowd(config) {
    const base = await site();
    const browser = await launch(config, sources.green);
    const room = roomName();
    // The machine encodes all of it: few small pictures, and only two watch.
    const small = { camera: true, microphone: true, simulcast: false, resolution: { width: 160, height: 90, frameRate: 5 } };
    const all = [];
    for (let i = 0; i < 6; i++) {
      const p = await peer(config, browser, base, room, `p${i}`, { dual: i === 1, autoSubscribe: i === 0 });
      await p.call('publish', { ...small, camera: i < 4 });
      all.push(p);
    }
    const late = await peer(config, browser, base, room, 'late');
    for (const p of all) await sounds(late, p);
    for (const p of all.slice(0, 4)) await decodes(late, p);
    for (const p of all.slice(1)) await sounds(all[0], p);
    step('two leave, one comes');
    await all[1].call('leave');
    await all[2].call('leave');
    const fresh = await peer(config, browser, base, room, 'fresh', { autoSubscribe: false });
    await fresh.call('publish', small);
    await decodes(late, fresh);
    await sounds(all[0], fresh);
    await decodes(late, all[3]);
    return { publishers: all.length };
  },

  // What must fail, does: tokens that are no good, and a room of somebody else.
  async refused(config) {
    const base = await site();
    const browser = await launch(config);
    const room = roomName();
    const tries = {
      'a forged token': token({ ...config.server, api_secret: 'x'.repeat(40) }, 'mallory', room),
      'an expired token': token(config.server, 'mallory', room, {}, -3600),
      'a token without roomJoin': token(config.server, 'mallory', room, { roomJoin: false }),
      'no token at all': '',
    };
    const reasons = {};
    for (const [what, jwt] of Object.entries(tries)) {
      step(what);
      const page = await open(browser, what, `${base}/livekit.html`);
      reasons[what] = await page.evaluate(([url, token]) =>
        window.peer.connect({ url, token, options: { maxRetries: 0 } }).then(() => 'connected', (e) => `${e.name}: ${e.message}`), [config.server.livekit_url, jwt]);
      must(reasons[what] !== 'connected', `${what} was let in`);
      await page.close();
    }
    // A listener that may not publish hears and sees, and is refused when it tries.
    const a = await peer(config, browser, base, room, 'alice');
    const b = await peer(config, browser, base, room, 'listener', { grants: { canPublish: false } });
    await a.call('publish', { camera: true });
    await decodes(b, a);
    const published = await b.call('publish', { camera: true }).then(() => true, () => false);
    must(!published, 'a listener published');
    // The same identity again: the older session has to go.
    const again = await peer(config, browser, base, room, 'alice', { label: 'alice again' });
    await poll('the older session of alice ends', async () => (await a.events('disconnected')).length === 1);
    await again.call('publish', { camera: true });
    await decodes(b, again);
    return reasons;
  },

  // A control: a camera that is off is not decoded, so "decodes" can fail.
  async muted(config) {
    const base = await site();
    const browser = await launch(config, sources.red);
    const room = roomName();
    const a = await peer(config, browser, base, room, 'alice');
    const b = await peer(config, browser, base, room, 'bob');
    await a.call('publish', { camera: true, microphone: true });
    await decodes(b, a);
    await a.call('setCamera', false);
    await a.call('setMicrophone', false);
    await sleep(1_000);
    await still('bob decodes nothing of a camera that is off', b.frames(a), { slack: 0 });
    await decodes(b, a, { ms: config.patience }); // must fail
    return {};
  },
};

await run((config) => scenarios[config.scenario](config));
