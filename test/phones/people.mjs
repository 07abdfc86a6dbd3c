// Chromium with livekit-client, conducted by the Go tests: one line of JSON in is
// one thing to do, one line out is what came of it. Browsers are shared by all
// tests of the package, each test opens pages of its own.
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { launch, modules, must, open, run, serve, step } from '../browser/lib.mjs';
import { record } from './record.mjs';

const browsers = new Map();
const pages = new Map();

const page = (name) => {
  must(pages.has(name), `there is no page ${name}`);
  return pages.get(name);
};

const does = {
  // launch starts a browser whose microphone hears a WAV file, over and over.
  async launch(config, { browser, wav }) {
    browsers.set(browser, await launch(config, null, { args: [`--use-file-for-fake-audio-capture=${wav}`] }));
  },

  // join opens a page and enters a room with a LiveKit token.
  async join(config, { browser, name, url, token, publish, key }) {
    const p = await open(browsers.get(browser), name, `${config.base}/livekit.html`);
    pages.set(name, p);
    const me = await p.evaluate((o) => window.peer.connect(o), { url, token, options: { maxRetries: 0 }, key });
    if (publish) await p.evaluate(() => window.peer.publish({ microphone: true }));
    return me;
  },

  // call calls a method of the page's peer.
  call: (_, { name, method, args }) => page(name).evaluate(([m, a]) => window.peer[m](...a), [method, args ?? []]),

  // run evaluates an expression in the page; room and me are at hand.
  run: (_, { name, js }) => page(name).evaluate(`(async () => { const room = window.peer.room, me = room.localParticipant; return ${js}; })()`),

  // others lists everybody else in the room, as the page sees them.
  others: (_, { name }) => page(name).evaluate(() => [...window.peer.room.remoteParticipants.values()].map((p) => ({
    identity: p.identity, sid: p.sid, name: p.name, kind: p.kind, attributes: p.attributes, metadata: p.metadata, encrypted: p.isEncrypted,
    tracks: [...p.trackPublications.values()].map((t) => ({ sid: t.trackSid, source: t.source, kind: t.kind, muted: t.isMuted, subscribed: t.isSubscribed, encrypted: t.isEncrypted, mime: t.mimeType })),
  }))),

  // record writes what the page hears (of somebody, or of all) to a WAV file.
  record: (_, { name, who, ms, file }) => record(page(name), { who, ms, file }),

  async leave(_, { name }) {
    const p = page(name);
    pages.delete(name);
    await p.evaluate(() => window.peer.leave());
    await p.context().close();
  },
};

await run(async (config) => {
  config.base = await serve({ mounts: { '/': new URL('../browser/pages', import.meta.url).pathname, '/livekit/': join(modules, 'livekit-client', 'dist') } });
  const busy = new Set();
  for await (const line of createInterface({ input: process.stdin })) {
    const { id, op, ...params } = JSON.parse(line);
    step(`${op} ${params.name ?? params.browser ?? ''}`);
    const job = Promise.resolve().then(() => does[op](config, params)).then(
      (value) => process.stdout.write(`${JSON.stringify({ id, value: value ?? null })}\n`),
      (err) => process.stdout.write(`${JSON.stringify({ id, error: String(err.message ?? err).slice(0, 2000) })}\n`),
    ).finally(() => busy.delete(job));
    busy.add(job);
  }
  return {};
});
