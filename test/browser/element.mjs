// Element Call, the published bundle, served on its own as if by its makers.
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { modules, open, poll, serve, step } from './lib.mjs';

// site serves Element Call for our server. Its paths are relative and its
// routes the client's own, so every route serves the same files.
export async function site(config, mode) {
  const dist = join(modules, '@element-hq', 'element-call-embedded', 'dist');
  const serverName = config.server.users[0].user_id.replace(/^@[^:]*:/, '');
  return serve({
    mounts: { '/': dist },
    fallback: join(dist, 'index.html'),
    rewrite: (path) => path.replace(/^\/(room|register|login)(?=\/|$)/, '') || '/',
    answers: {
      '/config.json': {
        default_server_config: { 'm.homeserver': { base_url: config.server.homeserver, server_name: serverName } },
        ...(mode ? { matrix_rtc_mode: mode } : {}),
        matrix_rtc_session: { wait_for_key_rotation_ms: 2000 },
        media_quality: { video: { max_resolution: 360, max_framerate: 15 } },
      },
    },
  });
}

// A Visitor is one person in Element Call; wire lists what its page asked of us.
export class Visitor {
  static async open(config, browser, base, name) {
    const v = new Visitor();
    v.base = base;
    v.name = name;
    v.wire = [];
    v.page = await open(browser, name, undefined, { viewport: { width: 900, height: 640 } });
    v.page.on('request', (r) => {
      const url = new URL(r.url());
      if (url.origin === new URL(base).origin) return;
      let body;
      try {
        body = r.postDataJSON();
      } catch { /* not JSON: not ours to read */ }
      v.wire.push({ method: r.method(), path: url.pathname, query: url.searchParams, body });
    });
    v.page.on('response', (r) => {
      if (r.status() >= 400 && new URL(r.url()).origin !== new URL(base).origin) console.error(`${name}: ${r.status()} ${r.request().method()} ${new URL(r.url()).pathname}`);
    });
    return v;
  }

  // register makes an account through the page's own form.
  async register() {
    step(`${this.name} registers with Element Call`);
    const { page } = this;
    this.localpart = `${this.name}-${randomUUID().slice(0, 8)}`;
    const password = randomUUID();
    await page.goto(`${this.base}/register`);
    await page.getByTestId('register_username').fill(this.localpart, { timeout: 40_000 });
    await page.getByTestId('register_password').fill(password);
    await page.getByTestId('register_confirm_password').fill(password);
    await page.getByTestId('register_register').click();
    await page.getByTestId('home_callName').waitFor({ timeout: 40_000 });
  }

  // login signs in to an existing account, and stays on the start page.
  async login(account) {
    step(`${this.name} signs in to Element Call`);
    const { page } = this;
    this.localpart = account.name;
    await page.goto(`${this.base}/login`);
    await page.getByTestId('login_username').fill(account.name, { timeout: 40_000 });
    await page.getByTestId('login_password').fill(account.password);
    await page.getByTestId('login_login').click();
    await page.getByTestId('home_callName').waitFor({ timeout: 40_000 });
  }

  // create starts a new call and returns its link.
  async create(name) {
    step(`${this.name} creates a call`);
    const { page } = this;
    await page.getByTestId('home_callName').fill(name);
    await page.getByTestId('home_go').click();
    await page.getByTestId('lobby_joinCall').waitFor({ timeout: 40_000 });
    return page.url();
  }

  // enter goes through the lobby of the call that the page is at, or of a link.
  async enter(link) {
    step(`${this.name} enters the call`);
    const { page } = this;
    if (link) await page.goto(link);
    await page.getByTestId('lobby_joinCall').click({ timeout: 40_000 });
    await page.getByTestId('incall_leave').waitFor({ timeout: 40_000 });
  }

  tiles() {
    return this.page.getByTestId('videoTile').count();
  }

  async leave() {
    step(`${this.name} leaves`);
    await this.page.getByTestId('incall_leave').click();
  }

  // published waits for this visitor's membership to go over the wire and
  // returns the types of event that carried it.
  async published() {
    return poll(`${this.name} publishes a membership`, () => {
      const types = this.wire
        .filter((r) => r.method === 'PUT' && !r.query.has('org.matrix.msc4140.delay') && r.body && (r.body.application || r.body['m.call']))
        .map((r) => r.path.match(/\/(?:state|send)\/([^/]+)/)?.[1]).filter(Boolean).map(decodeURIComponent)
        .filter((t) => /member/.test(t));
      return types.length && [...new Set(types)];
    });
  }

  // delegated waits for the leave to be handed to the server for an hour.
  async delegated() {
    return poll(`${this.name} delegates the leave`, (saw) => {
      const posts = this.wire.filter((r) => r.method === 'POST' && /\/(sfu\/get|get_token)$/.test(r.path));
      saw(posts.map((p) => [p.path, p.body?.delay_timeout]));
      return posts.find((r) => r.body?.delay_id && r.body.delay_timeout === 3_600_000)?.path;
    });
  }
}
