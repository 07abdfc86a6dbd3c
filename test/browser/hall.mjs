// Our own web client, used as a person uses it.
import { randomUUID } from 'node:crypto';
import { open, poll, step } from './lib.mjs';

const soon = { timeout: 40_000 };

export class Person {
  // open starts a page of the client in a browser; nobody is signed in yet.
  static async open(config, browser, name, { viewport = { width: 800, height: 560 } } = {}) {
    const p = new Person();
    p.base = config.server.homeserver;
    p.name = name;
    p.page = await open(browser, name, undefined, { viewport });
    p.page.on('response', (r) => {
      if (r.status() >= 400) console.error(`${name}: ${r.status()} ${r.request().method()} ${new URL(r.url()).pathname}`);
    });
    return p;
  }

  get(id) {
    return this.page.getByTestId(id);
  }

  async login({ user_id, password }) {
    step(`${this.name} signs in`);
    await this.page.goto(`${this.base}/login`);
    await this.get('login-user').fill(user_id, soon);
    await this.get('login-password').fill(password);
    await this.get('login-submit').click();
    await this.get('room-create').first().waitFor(soon);
    this.user = user_id;
  }

  async register() {
    step(`${this.name} registers`);
    await this.page.goto(`${this.base}/register`);
    const password = randomUUID();
    await this.get('register-user').fill(`${this.name}-${randomUUID().slice(0, 8)}`, soon);
    await this.get('register-password').fill(password);
    await this.get('register-password-again').fill(password);
    await this.get('register-submit').click();
    await this.get('room-create').first().waitFor(soon);
    this.user = await this.get('own-user-id').first().innerText();
  }

  // create makes a room and returns the link to its call.
  async create({ name, access = 'anyone' }) {
    step(`${this.name} creates a room`);
    await this.get('room-create').first().click();
    await this.get('room-name').fill(name, soon);
    await this.get(`room-access-${access}`).check();
    await this.get('room-create-submit').click();
    await this.get('call-start').waitFor(soon);
    return this.get('copy-link').first().getAttribute('data-text');
  }

  // start begins the call of the room that the page is at.
  async start() {
    await this.get('call-start').click(soon);
    await this.enter();
  }

  // follow opens a link to a call; a guest gives a name.
  async follow(link, guest) {
    step(`${this.name} follows the link`);
    await this.page.goto(link);
    if (guest) await this.get('guest-name').fill(guest, soon);
    await this.enter();
  }

  // enter goes through the lobby and waits until the call's media is connected.
  async enter() {
    step(`${this.name} enters the call`);
    await this.page.getByTestId('preview').locator('video').waitFor(soon);
    await this.get('lobby-join').click(soon);
    await poll(`${this.name} is connected`, async (saw) => {
      const trouble = await this.page.getByTestId('trouble-code').allInnerTexts();
      const refused = await this.page.getByTestId('lobby-error').allInnerTexts();
      const phase = (await this.get('call').count()) ? await this.get('call').getAttribute('data-phase') : 'lobby';
      saw([phase, ...trouble, ...refused]);
      return phase === 'connected';
    });
  }

  // tile describes somebody's tile, or is null.
  tile(user, kind = 'camera') {
    return this.page.evaluate(([u, k]) => {
      const el = [...document.querySelectorAll('[data-testid=tile]')].find((e) => e.dataset.user === u && e.dataset.kind === k);
      const video = el?.querySelector('video');
      return el ? { ...el.dataset, width: video?.videoWidth ?? 0, frames: video?.getVideoPlaybackQuality().totalVideoFrames ?? 0 } : null;
    }, [user, kind]);
  }

  tiles() {
    return this.page.evaluate(() => [...document.querySelectorAll('[data-testid=tile]')].map((e) => `${e.dataset.user} ${e.dataset.kind}`));
  }
}
