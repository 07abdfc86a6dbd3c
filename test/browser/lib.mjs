// What every script of the browser tests shares: browsers with known cameras
// and microphones, waiting, tokens, a static file server, and the talk with the
// Go test that started the script.
import { createHmac, randomUUID } from 'node:crypto';
import { createReadStream, mkdirSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, extname, join, normalize } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { installProbe } from './probe.mjs';

const here = dirname(fileURLToPath(import.meta.url));
export const modules = join(here, '..', 'node_modules');

// A source is what one browser's camera shows and its microphone hears: one
// colour and one tone that no other browser has. The tones share no harmonics.
export const sources = {
  red: { rgb: [200, 40, 40], hz: 523 },
  green: { rgb: [40, 170, 40], hz: 890 },
  blue: { rgb: [40, 60, 210], hz: 1480 },
};

let current = 'starting';
const pages = []; // every page, for screenshots and logs when something fails
const browsers = new Set();
const servers = new Set();

// step names what is being waited for, for the error message of a failure.
export function step(name) {
  current = name;
  console.error(`${new Date().toISOString().slice(11, 23)} ${name}`);
}

// run calls body with the script's configuration and reports to the Go test.
export async function run(body) {
  const config = JSON.parse(process.argv[2]);
  const deadline = setTimeout(() => finish(new Error(`gave up after ${config.seconds} s`)), config.seconds * 1000);
  let done = false;
  const finish = async (err, result) => {
    if (done) return;
    done = true;
    clearTimeout(deadline);
    let code = 0;
    if (err) {
      code = 1;
      console.error(err.stack ?? String(err));
      await Promise.race([evidence(config.output), new Promise((r) => setTimeout(r, 10_000))]);
      print({ error: `${current}: ${err.message ?? err}` });
    } else {
      print({ result: result ?? {} });
    }
    setTimeout(() => process.exit(code), 8_000); // when a browser does not close
    await Promise.allSettled([...browsers].map((b) => b.close()));
    for (const s of servers) s.close();
    process.exit(code);
  };
  process.on('unhandledRejection', (err) => finish(err instanceof Error ? err : new Error(String(err))));
  try {
    await finish(null, await body(config));
  } catch (err) {
    await finish(err);
  }
}

function print(value) {
  process.stdout.write(JSON.stringify(value) + '\n');
}

async function evidence(dir) {
  mkdirSync(dir, { recursive: true });
  for (const { name, page, log } of pages) {
    // livekit-client names every key again and again.
    const lines = log.filter((l) => !l.includes('set participant sender key'));
    console.error(`--- console of ${name}\n${lines.slice(-150).join('\n')}`);
    if (!page.isClosed()) await page.screenshot({ path: join(dir, `${name}.png`), timeout: 5_000 }).catch(() => {});
  }
}

let answers;
// ask lets the Go test do something, with a value if it wants one, and returns
// its answer.
export async function ask(name, value) {
  answers ??= createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  print({ ask: name, value });
  const { value: line, done } = await answers.next();
  if (done) throw new Error(`no answer to ${name}`);
  return JSON.parse(line).answer;
}

export const sleep = (ms) => new Promise((r) => setTimeout(r, ms));

// poll calls check until it returns something truthy, and returns that. What it
// last returned or threw is part of the error.
export async function poll(what, check, { ms = 40_000, every = 250 } = {}) {
  step(what);
  const end = Date.now() + ms;
  let last;
  for (;;) {
    try {
      const got = await check((state) => { last = state; });
      if (got) return got;
      if (got === false || got === undefined) last ??= 'not yet';
    } catch (err) {
      if (err.final) throw err;
      last = err.message;
    }
    if (Date.now() > end) {
      throw new Error(`did not happen within ${ms / 1000} s; last seen: ${typeof last === 'string' ? last : JSON.stringify(last)}`);
    }
    await sleep(every);
  }
}

// must throws with the message when cond is false.
export function must(cond, message, seen) {
  if (!cond) throw new Error(seen === undefined ? message : `${message}; seen: ${JSON.stringify(seen)}`);
}

// rises waits until the number that read returns has grown by at least `by`.
export async function rises(what, read, { by = 1, ...options } = {}) {
  let first;
  return poll(what, async (saw) => {
    const now = await read();
    saw(`${first} -> ${now}`);
    if (typeof now !== 'number') return false;
    first ??= now;
    return now >= first + by;
  }, options);
}

// still reports that the number does not grow for `ms`: the negative of rises.
export async function still(what, read, { ms = 2_000, slack = 0 } = {}) {
  step(what);
  const first = await read();
  await sleep(ms);
  const now = await read();
  must(now <= first + slack, `${first} became ${now} within ${ms} ms`);
}

// launch starts a Chromium whose camera and microphone are the source's. Each
// source needs a browser of its own: the files are a matter of the command line.
export async function launch(config, source, { args = [] } = {}) {
  const media = source ? mediaFiles(config.dir, source) : [];
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [
      '--no-sandbox',
      '--use-fake-ui-for-media-stream',
      '--use-fake-device-for-media-stream',
      '--allow-loopback-in-peer-connection',
      '--autoplay-policy=no-user-gesture-required',
      '--disable-gpu',
      '--disable-quic',
      '--disable-background-networking',
      '--disable-background-timer-throttling',
      '--disable-backgrounding-occluded-windows',
      '--disable-renderer-backgrounding',
      '--disable-component-update',
      '--disable-sync',
      '--disable-features=Translate,MediaRouter,OptimizationHints',
      '--force-prefers-reduced-motion',
      '--no-proxy-server',
      ...media,
      ...args,
    ],
  });
  browsers.add(browser);
  return browser;
}

// kill ends a browser without letting its pages say goodbye.
export async function kill(browser, page) {
  // Page.crash makes the renderer die at once: no pagehide, no sockets closed by script.
  const session = await page.context().newCDPSession(page);
  await Promise.race([session.send('Page.crash').catch(() => {}), sleep(3_000)]);
  browsers.delete(browser);
  await Promise.race([browser.close().catch(() => {}), sleep(5_000)]);
}

// open opens a page in a context of its own, with the probe in it.
export async function open(browser, name, url, { viewport = { width: 960, height: 640 }, init } = {}) {
  const context = await browser.newContext({ viewport, permissions: ['camera', 'microphone'], reducedMotion: 'reduce' });
  await context.addInitScript(installProbe);
  if (init) await context.addInitScript(init.script, init.arg);
  const page = await context.newPage();
  const log = [];
  page.on('console', (m) => log.push(`${m.type()}: ${m.text().slice(0, 400)}`));
  page.on('pageerror', (e) => log.push(`page error: ${e.message}`));
  page.on('crash', () => log.push('the page crashed'));
  pages.push({ name, page, log });
  if (url) await page.goto(url, { waitUntil: 'domcontentloaded' });
  return page;
}

// token mints a LiveKit access token.
export function token(server, identity, room, grants = {}, seconds = 600) {
  const now = Math.floor(Date.now() / 1000);
  const part = (v) => Buffer.from(JSON.stringify(v)).toString('base64url');
  const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({
    iss: server.api_key,
    sub: identity,
    name: identity,
    nbf: now - 10,
    exp: now + seconds,
    video: { room, roomJoin: true, canPublish: true, canSubscribe: true, canPublishData: true, ...grants },
  })}`;
  return `${signed}.${createHmac('sha256', server.api_secret).update(signed).digest('base64url')}`;
}

export const roomName = () => `room-${randomUUID().slice(0, 8)}`;

const types = {
  '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
  '.wasm': 'application/wasm', '.svg': 'image/svg+xml', '.woff2': 'font/woff2', '.woff': 'font/woff', '.mp3': 'audio/mpeg', '.ogg': 'audio/ogg', '.png': 'image/png',
};

// serve is a static file server on 127.0.0.1. mounts maps URL prefixes to
// folders (the longest prefix wins); answers maps exact paths to JSON values;
// with fallback, unknown paths get that file. It returns the server's address.
export async function serve({ mounts, answers = {}, fallback, rewrite = (p) => p }) {
  const prefixes = Object.keys(mounts).sort((a, b) => b.length - a.length);
  const server = createServer((req, res) => {
    let path;
    try {
      path = normalize(rewrite(decodeURIComponent(new URL(req.url, 'http://x').pathname)));
    } catch {
      res.writeHead(400).end();
      return;
    }
    if (path in answers) {
      res.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answers[path]));
      return;
    }
    let file;
    const prefix = prefixes.find((p) => path.startsWith(p));
    if (prefix) file = join(mounts[prefix], path.slice(prefix.length));
    if (!file || !isFile(file)) file = fallback;
    if (!file) {
      res.writeHead(404).end();
      return;
    }
    res.writeHead(200, { 'content-type': types[extname(file)] ?? 'application/octet-stream', 'cache-control': 'no-store' });
    createReadStream(file).pipe(res);
  });
  servers.add(server);
  await new Promise((ok, bad) => server.listen(0, '127.0.0.1', ok).once('error', bad));
  server.unref();
  return `http://127.0.0.1:${server.address().port}`;
}

function isFile(path) {
  try {
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function mediaFiles(dir, source) {
  const name = source.rgb.join('-');
  const video = join(dir, `${name}.y4m`);
  const audio = join(dir, `${name}.wav`);
  if (!isFile(video)) writeFileSync(video, y4m(source.rgb));
  if (!isFile(audio)) writeFileSync(audio, wav(source.hz));
  return [`--use-file-for-fake-video-capture=${video}`, `--use-file-for-fake-audio-capture=${audio}`];
}

// y4m is a second of 640x360 video: one colour with a moving dark bar, so that
// every frame has something new in it and the average stays the colour's.
function y4m([r, g, b], { width = 640, height = 360, fps = 10 } = {}) {
  const luma = Math.round(16 + 0.257 * r + 0.504 * g + 0.098 * b);
  const cb = Math.round(128 - 0.148 * r - 0.291 * g + 0.439 * b);
  const cr = Math.round(128 + 0.439 * r - 0.368 * g - 0.071 * b);
  const out = [Buffer.from(`YUV4MPEG2 W${width} H${height} F${fps}:1 Ip A1:1 C420jpeg\n`)];
  const chroma = (width / 2) * (height / 2);
  for (let n = 0; n < fps; n++) {
    const y = Buffer.alloc(width * height, luma);
    const left = Math.round((n / fps) * (width - 40));
    for (let row = 0; row < height; row++) y.fill(Math.max(16, luma - 40), row * width + left, row * width + left + 40);
    out.push(Buffer.from('FRAME\n'), y, Buffer.alloc(chroma, cb), Buffer.alloc(chroma, cr));
  }
  return Buffer.concat(out);
}

// wav is four seconds of a tone that stops for a moment every half second:
// what never changes is taken for noise by some clients.
function wav(hz, { rate = 48_000, seconds = 4 } = {}) {
  const samples = rate * seconds;
  const b = Buffer.alloc(44 + samples * 2);
  b.write('RIFF', 0);
  b.writeUInt32LE(36 + samples * 2, 4);
  b.write('WAVEfmt ', 8);
  b.writeUInt32LE(16, 16);
  b.writeUInt16LE(1, 20);
  b.writeUInt16LE(1, 22);
  b.writeUInt32LE(rate, 24);
  b.writeUInt32LE(rate * 2, 28);
  b.writeUInt16LE(2, 32);
  b.writeUInt16LE(16, 34);
  b.write('data', 36);
  b.writeUInt32LE(samples * 2, 40);
  const period = rate / 2;
  for (let i = 0; i < samples; i++) {
    const at = i % period;
    // 400 ms of tone with soft edges, 100 ms of silence.
    const edge = Math.min(at, rate * 0.4 - at) / (rate * 0.01);
    const gain = Math.max(0, Math.min(1, edge));
    b.writeInt16LE(Math.round(12_000 * gain * Math.sin((2 * Math.PI * hz * i) / rate)), 44 + i * 2);
  }
  return b;
}

// shows waits until the page's visible remote pictures include every wanted source.
export async function shows(what, page, wanted, options) {
  return poll(what, async (saw) => {
    const pictures = await page.evaluate(() => window.__probe.pictures());
    saw(pictures);
    const remote = pictures.filter((p) => p.remote && p.moving);
    return wanted.every((s) => remote.some((p) => near(p.rgb, s.rgb)));
  }, { every: 500, ...options });
}

// near reports whether a seen colour is the wanted one, after a codec and a
// colour conversion: the sources are far apart.
export function near(seen, wanted) {
  return seen && seen.every((v, i) => Math.abs(v - wanted[i]) < 60);
}

// hears waits until the page plays every wanted source's tone, then listens on
// for a while and requires that it plays none of the others.
export async function hears(what, page, wanted, others, { ms = 40_000, listen = 3_000 } = {}) {
  const hz = [...wanted, ...others].map((s) => s.hz);
  const read = () => page.evaluate((f) => window.__probe.levels(f), hz);
  await poll(what, async (saw) => {
    const now = await read();
    saw(now);
    return wanted.every((_, i) => now[i] > -60);
  }, { ms, every: 200 });
  step(`${what}, and nothing else`);
  const peak = hz.map(() => -200);
  const end = Date.now() + listen;
  while (Date.now() < end) {
    (await read()).forEach((v, i) => { peak[i] = Math.max(peak[i], v); });
    await sleep(100);
  }
  const quietest = Math.min(...peak.slice(0, wanted.length));
  must(quietest > -60, 'a tone stopped', peak);
  others.forEach((s, i) => must(peak[wanted.length + i] < quietest - 20, `heard ${s.hz} Hz, which nobody else sends`, peak));
  return peak;
}
