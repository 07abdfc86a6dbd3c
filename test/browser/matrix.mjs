// A Matrix account used through plain requests, for what a test does beside
// its browsers.
import { randomUUID } from 'node:crypto';

export class Account {
  constructor(server, { user_id, access_token, device_id, password }) {
    Object.assign(this, { base: server.homeserver, user: user_id, token: access_token, device: device_id, password });
    this.name = user_id.slice(1).split(':')[0];
    this.serverName = user_id.slice(user_id.indexOf(':') + 1);
  }

  // register makes a new account.
  static async register(server, name) {
    const username = `${name}-${randomUUID().slice(0, 8)}`;
    const password = randomUUID();
    const post = async (body) => {
      const res = await fetch(`${server.homeserver}/_matrix/client/v3/register`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
      return { status: res.status, body: await res.json() };
    };
    const first = await post({ username, password });
    const done = first.status === 401 ? await post({ username, password, auth: { type: 'm.login.dummy', session: first.body.session } }) : first;
    if (done.status !== 200) throw new Error(`registering ${username}: ${done.status} ${JSON.stringify(done.body)}`);
    return new Account(server, { ...done.body, password });
  }

  // request calls the client-server API; an error carries status and errcode.
  async request(method, path, body) {
    const res = await fetch(`${this.base}/_matrix/client${path}`, {
      method,
      headers: { authorization: `Bearer ${this.token}`, ...(body ? { 'content-type': 'application/json' } : {}) },
      body: body && JSON.stringify(body),
    });
    const text = await res.text();
    let json;
    try {
      json = JSON.parse(text);
    } catch { /* below */ }
    if (!res.ok) throw Object.assign(new Error(`${method} ${path}: ${res.status} ${text.slice(0, 200)}`), { status: res.status, errcode: json?.errcode });
    return json;
  }

  createRoom(body) {
    return this.request('POST', '/v3/createRoom', body).then((r) => r.room_id);
  }

  join(room) {
    return this.request('POST', `/v3/join/${encodeURIComponent(room)}`, {});
  }

  invite(room, user) {
    return this.request('POST', `/v3/rooms/${encodeURIComponent(room)}/invite`, { user_id: user });
  }

  kick(room, user) {
    return this.request('POST', `/v3/rooms/${encodeURIComponent(room)}/kick`, { user_id: user, reason: 'a test' });
  }

  ban(room, user) {
    return this.request('POST', `/v3/rooms/${encodeURIComponent(room)}/ban`, { user_id: user });
  }

  leave(room) {
    return this.request('POST', `/v3/rooms/${encodeURIComponent(room)}/leave`, {});
  }

  state(room) {
    return this.request('GET', `/v3/rooms/${encodeURIComponent(room)}/state`);
  }

  // token asks the token service for a LiveKit token, as a call client does.
  async livekit(server, room, device = this.device) {
    const openid = await this.request('POST', `/v3/user/${encodeURIComponent(this.user)}/openid/request_token`, {});
    const res = await fetch(`${server.jwt_service}/sfu/get`, {
      method: 'POST', headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ room, openid_token: openid, device_id: device }),
    });
    const body = await res.json();
    if (!res.ok) throw Object.assign(new Error(`/sfu/get: ${res.status} ${JSON.stringify(body)}`), { status: res.status, errcode: body.errcode });
    return body;
  }

  // callMembers lists who is in the room's call as its members see it: by state
  // events and by sticky ones.
  async callMembers(room) {
    const members = new Set();
    for (const e of await this.state(room)) {
      if (e.type === 'org.matrix.msc3401.call.member' && e.content.application === 'm.call') members.add(`${e.sender} ${e.content.device_id}`);
    }
    const filter = JSON.stringify({ room: { rooms: [room], timeline: { limit: 100 } } });
    const sync = await this.request('GET', `/v3/sync?timeout=0&filter=${encodeURIComponent(filter)}`);
    const joined = sync.rooms?.join?.[room];
    const sticky = new Map(); // sticky key -> newest event
    for (const e of [...(joined?.timeline?.events ?? []), ...(joined?.msc4354_sticky?.events ?? [])]) {
      if (e.type !== 'org.matrix.msc4143.rtc.member') continue;
      const key = `${e.sender} ${e.content.msc4354_sticky_key}`;
      const before = sticky.get(key);
      if (!before || e.origin_server_ts >= before.origin_server_ts) sticky.set(key, e);
    }
    for (const e of sticky.values()) if (e.content.member) members.add(`${e.sender} ${e.content.member.device_id}`);
    return [...members];
  }
}
