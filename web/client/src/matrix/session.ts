import {
  ClientEvent,
  createClient,
  MatrixError,
  PendingEventOrdering,
  SyncState,
  type MatrixClient,
} from "matrix-js-sdk";
import { logger as matrixLogger } from "matrix-js-sdk/lib/logger";
import type { ServerConfig } from "./config.ts";

/** One signed-in device, as it is kept between visits. */
export interface Session {
  baseUrl: string;
  userId: string;
  deviceId: string;
  accessToken: string;
  guest: boolean;
}

const KEY = "trunkhall.session";

export function loadSession(): Session | undefined {
  try {
    const s = JSON.parse(localStorage.getItem(KEY) ?? "null") as Partial<Session> | null;
    if (s?.baseUrl && s.userId && s.deviceId && s.accessToken) return { guest: false, ...s } as Session;
  } catch {
    // Not ours, or storage is blocked: start at the door.
  }
  return undefined;
}

export function saveSession(s: Session): void {
  localStorage.setItem(KEY, JSON.stringify(s));
}

export function forgetSession(): void {
  localStorage.removeItem(KEY);
}

interface LoginAnswer {
  user_id: string;
  device_id?: string;
  access_token?: string;
}

function sessionFrom(baseUrl: string, r: LoginAnswer, guest: boolean): Session {
  if (!r.access_token || !r.device_id) throw new Error("The server gave no device or access token.");
  return { baseUrl, userId: r.user_id, deviceId: r.device_id, accessToken: r.access_token, guest };
}

function deviceName(): string {
  const ua = navigator.userAgent;
  const browser = /Firefox\//.test(ua)
    ? "Firefox"
    : /Edg\//.test(ua)
      ? "Edge"
      : /Chrome\//.test(ua)
        ? "Chrome"
        : /Safari\//.test(ua)
          ? "Safari"
          : "browser";
  return `Trunkhall (${browser})`;
}

/** signIn logs in with a password. `user` may be a localpart or a whole user ID. */
export async function signIn(config: ServerConfig, user: string, password: string): Promise<Session> {
  const client = createClient({ baseUrl: config.baseUrl });
  const r = await client.loginRequest({
    type: "m.login.password",
    identifier: { type: "m.id.user", user: user.trim() },
    password,
    initial_device_display_name: deviceName(),
  });
  return sessionFrom(config.baseUrl, r, false);
}

/**
 * register makes an account, walking through the stages that need no person:
 * the dummy stage, and the registration token when one is given.
 */
export async function register(
  config: ServerConfig,
  username: string,
  password: string,
  token?: string,
): Promise<Session> {
  const client = createClient({ baseUrl: config.baseUrl });
  const request = {
    username: username.trim(),
    password,
    initial_device_display_name: deviceName(),
  };
  let auth: Record<string, unknown> | undefined;
  for (let round = 0; round < 4; round++) {
    try {
      const r = await client.registerRequest({ ...request, ...(auth ? { auth } : {}) } as never);
      return sessionFrom(config.baseUrl, r as LoginAnswer, false);
    } catch (e) {
      const step = e instanceof MatrixError && e.httpStatus === 401 ? nextStage(e.data, token) : undefined;
      if (!step) throw e;
      auth = step;
    }
  }
  throw new Error("The server kept asking for more steps than this page knows.");
}

/** nextStage answers a user-interactive challenge with the next stage this page can do by itself. */
export function nextStage(data: unknown, token?: string): Record<string, unknown> | undefined {
  const d = data as {
    session?: string;
    completed?: string[];
    flows?: { stages: string[] }[];
    errcode?: string;
  };
  if (!d?.session || !Array.isArray(d.flows) || d.errcode) return undefined;
  const done = d.completed ?? [];
  const can = (stage: string) =>
    stage === "m.login.dummy" || (stage === "m.login.registration_token" && !!token);
  for (const flow of d.flows) {
    if (!flow.stages.every((s) => done.includes(s) || can(s))) continue;
    const stage = flow.stages.find((s) => !done.includes(s));
    if (!stage) continue;
    return {
      session: d.session,
      type: stage,
      ...(stage === "m.login.registration_token" ? { token } : {}),
    };
  }
  return undefined;
}

/** enterAsGuest makes a guest account (`kind=guest`) with a display name. */
export async function enterAsGuest(config: ServerConfig, name: string): Promise<Session> {
  const res = await fetch(`${config.baseUrl}/_matrix/client/v3/register?kind=guest`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ initial_device_display_name: deviceName() }),
  });
  const body = await res.json().catch(() => ({}));
  if (!res.ok) throw new MatrixError(body, res.status);
  const session = sessionFrom(config.baseUrl, body as LoginAnswer, true);
  const client = createClient(session);
  await client.setDisplayName(name.trim()).catch(() => undefined);
  return session;
}

/**
 * startClient brings a session to life: keys first, then the sync loop. It
 * resolves when the first sync has arrived and rejects when the server no
 * longer knows the session.
 */
export async function startClient(session: Session): Promise<MatrixClient> {
  quiet();
  const client = createClient({
    baseUrl: session.baseUrl,
    userId: session.userId,
    deviceId: session.deviceId,
    accessToken: session.accessToken,
    useAuthorizationHeader: true,
  } as Parameters<typeof createClient>[0]);
  if (session.guest) client.setGuest(true);
  await client.whoami();
  await startCrypto(client, session);
  await new Promise<void>((resolve, reject) => {
    const onSync = (state: SyncState, _old: SyncState | null, data?: { error?: Error }) => {
      if (state === SyncState.Prepared || state === SyncState.Syncing) {
        client.off(ClientEvent.Sync, onSync);
        resolve();
      } else if (state === SyncState.Error && data?.error instanceof MatrixError) {
        if (data.error.errcode === "M_UNKNOWN_TOKEN") {
          client.off(ClientEvent.Sync, onSync);
          reject(data.error);
        }
      }
    };
    client.on(ClientEvent.Sync, onSync);
    client
      .startClient({
        initialSyncLimit: 30,
        // Every member must be known to tell who in a call is really in the room.
        lazyLoadMembers: false,
        pendingEventOrdering: PendingEventOrdering.Chronological,
      })
      .catch(reject);
  });
  return client;
}

/** quiet keeps the library's running commentary out of the console unless asked for (localStorage "trunkhall.debug"). */
function quiet(): void {
  if (localStorage.getItem("trunkhall.debug")) return;
  (matrixLogger as unknown as { setLevel?: (level: string, persist?: boolean) => void }).setLevel?.("warn", false);
}

function cryptoPrefix(s: Session): string {
  return `trunkhall:${s.userId}:${s.deviceId}`;
}

async function startCrypto(client: MatrixClient, session: Session): Promise<void> {
  try {
    await client.initRustCrypto({ cryptoDatabasePrefix: cryptoPrefix(session) });
  } catch {
    // Private windows may forbid databases. Keys then live as long as the page.
    await client.initRustCrypto({ useIndexedDB: false });
  }
}

/** stopClient ends the sync loop and, when asked to sign out, the device and its keys too. */
export async function stopClient(client: MatrixClient, session: Session, signOut: boolean): Promise<void> {
  if (signOut) await client.logout(false).catch(() => undefined);
  client.stopClient();
  if (!signOut) return;
  await client.clearStores({ cryptoDatabasePrefix: cryptoPrefix(session) }).catch(() => undefined);
}
