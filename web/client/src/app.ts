import { ClientEvent, HttpApiEvent, MatrixError, RoomEvent, RoomMemberEvent, RoomStateEvent, SyncState, type MatrixClient, type Room } from "matrix-js-sdk";
import { MatrixRTCSessionEvent, MatrixRTCSessionManagerEvents, type MatrixRTCSession } from "matrix-js-sdk/lib/matrixrtc";
import { MatrixEventEvent } from "matrix-js-sdk/lib/models/event";
import { Call, type CallSummary, type Prepared } from "./call/call.ts";
import { coalesce, Store, useStore } from "./lib/store.ts";
import { loadConfig, lookAtServer, type ServerConfig, type ServerState } from "./matrix/config.ts";
import * as sessions from "./matrix/session.ts";
import type { Session } from "./matrix/session.ts";
import { askPhones } from "./phone/api.ts";
import { t } from "./strings/en.ts";

/** What the whole page depends on. */
export interface AppState {
  /** `elsewhere`: another window of this browser uses the session. */
  phase: "starting" | "door" | "in" | "elsewhere";
  config: ServerConfig;
  server: ServerState | undefined;
  session: Session | undefined;
  client: MatrixClient | undefined;
  online: boolean;
  /** Told at the door, for instance that one was signed out. */
  notice: string | undefined;
  call: Call | undefined;
  after: CallSummary | undefined;
}

export const app = new Store<AppState>({
  phase: "starting",
  config: { baseUrl: location.origin },
  server: undefined,
  session: undefined,
  client: undefined,
  online: true,
  notice: undefined,
  call: undefined,
  after: undefined,
});

/** Counts changes of what the Matrix client knows: rooms, members, messages, calls. */
const matrixVersion = new Store(0);
const touch = coalesce(() => matrixVersion.set(matrixVersion.value + 1), 40);

export function useApp(): AppState {
  return useStore(app);
}

/** useMatrix gives the client and renders again whenever it learns something. */
export function useMatrix(): MatrixClient {
  useStore(matrixVersion);
  return app.value.client!;
}

/** boot reads the configuration and goes on with a kept session, if there is one. */
export async function boot(): Promise<void> {
  const config = await loadConfig();
  app.patch({ config });
  const kept = sessions.loadSession();
  void lookAtServer(config).then((server) => app.patch({ server }));
  if (!kept) {
    app.patch({ phase: "door" });
    return;
  }
  await resume(kept, false);
}

/** useHere takes the session over from another window of this browser. */
export async function useHere(): Promise<void> {
  const kept = sessions.loadSession();
  if (kept) await resume(kept, true);
  else app.patch({ phase: "door" });
}

async function resume(kept: Session, takeOver: boolean): Promise<void> {
  try {
    if (!(await hold(kept, takeOver))) {
      app.patch({ phase: "elsewhere" });
      return;
    }
    app.patch({ phase: "starting" });
    await enter(kept);
  } catch (e) {
    const gone = e instanceof MatrixError && (e.errcode === "M_UNKNOWN_TOKEN" || e.httpStatus === 401);
    if (gone) sessions.forgetSession();
    app.patch({ phase: "door", notice: gone ? t.errors.signedOut : t.errors.noServer });
  }
}

/**
 * hold keeps other windows of this browser away from a session's keys: two
 * windows writing to one key store would damage it. It reports false when
 * another window has it, unless it is to be taken over.
 */
async function hold(session: Session, takeOver: boolean): Promise<boolean> {
  const name = `trunkhall:${session.deviceId}`;
  if (!navigator.locks || held === name) return true;
  return new Promise((resolve) => {
    navigator.locks
      .request(name, takeOver ? { steal: true } : { ifAvailable: true }, (lock) => {
        resolve(lock !== null);
        if (lock === null) return undefined;
        held = name;
        return new Promise<void>((release) => (letGo = release));
      })
      .catch(() => void yieldSession());
  });
}

let held: string | undefined;
let letGo: () => void = () => undefined;

function release(): void {
  held = undefined;
  letGo();
}

/** yieldSession stops this window because another one took over. */
async function yieldSession(): Promise<void> {
  const { client, call } = app.value;
  held = undefined;
  await call?.leave("elsewhere");
  client?.stopClient();
  app.patch({ phase: "elsewhere", client: undefined, session: undefined, call: undefined, after: undefined });
}

/** enter starts a session's client and opens the hall. */
export async function enter(session: Session): Promise<MatrixClient> {
  await hold(session, true);
  const client = await sessions.startClient(session);
  sessions.saveSession(session);
  watch(client);
  app.patch({ phase: "in", session, client, notice: undefined, online: true });
  void askPhones(client);
  touch();
  return client;
}

/** signOut ends a running call, the device and the session. */
export async function signOut(): Promise<void> {
  const { client, session, call } = app.value;
  await call?.leave("signed-out");
  if (client && session) await sessions.stopClient(client, session, true);
  sessions.forgetSession();
  release();
  app.patch({ phase: "door", client: undefined, session: undefined, call: undefined, after: undefined });
}

/** startCall joins a room's call. One call at a time. */
export async function startCall(room: Room, prepared: Prepared, wants: { mic: boolean; camera: boolean }): Promise<void> {
  const { client, call: running } = app.value;
  if (!client) return;
  await running?.leave("left");
  const call = new Call(client, room, prepared, wants);
  const stop = call.state.subscribe((s) => {
    if (s.phase !== "ended") return;
    stop();
    if (app.value.call === call) app.patch({ call: undefined, after: call.summary() });
  });
  app.patch({ call, after: undefined });
  await call.start();
}

function watch(client: MatrixClient): void {
  client.on(ClientEvent.Sync, (state, _old, data) => {
    const online = state !== SyncState.Error && state !== SyncState.Reconnecting;
    if (online !== app.value.online) app.patch({ online });
    if (data?.error instanceof MatrixError && data.error.errcode === "M_UNKNOWN_TOKEN") void kickedOut();
    touch();
  });
  client.on(HttpApiEvent.SessionLoggedOut, () => void kickedOut());
  client.on(ClientEvent.Room, touch);
  client.on(ClientEvent.DeleteRoom, touch);
  client.on(RoomEvent.Name, touch);
  client.on(RoomEvent.Timeline, touch);
  client.on(RoomEvent.LocalEchoUpdated, touch);
  client.on(RoomEvent.Redaction, touch);
  client.on(RoomEvent.MyMembership, touch);
  client.on(RoomEvent.Receipt, touch);
  client.on(RoomStateEvent.Events, touch);
  client.on(RoomMemberEvent.Membership, touch);
  client.on(MatrixEventEvent.Decrypted, touch);
  client.on(MatrixEventEvent.Replaced, touch);
  const sessionSeen = new WeakSet<MatrixRTCSession>();
  const follow = (session: MatrixRTCSession) => {
    if (!sessionSeen.has(session)) {
      sessionSeen.add(session);
      session.on(MatrixRTCSessionEvent.MembershipsChanged, touch);
    }
    touch();
  };
  client.matrixRTC.on(MatrixRTCSessionManagerEvents.SessionStarted, (_room, session) => follow(session));
  client.matrixRTC.on(MatrixRTCSessionManagerEvents.SessionEnded, (_room, session) => follow(session));
  for (const room of client.getRooms()) follow(client.matrixRTC.getRoomSession(room));
  client.on(ClientEvent.Room, (room) => follow(client.matrixRTC.getRoomSession(room)));
}

async function kickedOut(): Promise<void> {
  const { client, session, call } = app.value;
  if (!client || !session) return;
  await call?.leave("signed-out");
  client.stopClient();
  sessions.forgetSession();
  release();
  app.patch({ phase: "door", client: undefined, session: undefined, call: undefined, notice: t.errors.signedOut });
}

/** explain turns an error of the Matrix client into a sentence. */
export function explain(e: unknown): string {
  if (e instanceof MatrixError) {
    switch (e.errcode) {
      case "M_USER_IN_USE":
        return t.errors.taken;
      case "M_INVALID_USERNAME":
      case "M_EXCLUSIVE":
        return t.errors.badName;
      case "M_WEAK_PASSWORD":
        return t.errors.weak;
      case "M_LIMIT_EXCEEDED":
        return t.errors.tooOften;
      case "M_NOT_FOUND":
        return t.errors.notFound;
      case "M_GUEST_ACCESS_FORBIDDEN":
        return t.errors.guestsClosed;
      case "M_FORBIDDEN":
        return t.errors.forbidden;
    }
    return t.errors.other(e.data?.error ?? e.message);
  }
  if (e instanceof TypeError || (e as { name?: string })?.name === "ConnectionError") return t.errors.noServer;
  return t.errors.other(e instanceof Error ? e.message : String(e));
}

/** waitForRoom resolves when a room that was just joined has come in by sync. */
export async function waitForRoom(client: MatrixClient, roomId: string, timeoutMs = 15_000): Promise<Room> {
  const ready = () => {
    const room = client.getRoom(roomId);
    return room?.getMyMembership() === "join" ? room : undefined;
  };
  const now = ready();
  if (now) return now;
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      stop();
      reject(new Error(t.errors.notFound));
    }, timeoutMs);
    const stop = matrixVersion.subscribe(() => {
      const room = ready();
      if (!room) return;
      clearTimeout(timer);
      stop();
      resolve(room);
    });
  });
}

/** findRoom looks a room up by ID or alias among those the client knows. */
export function findRoom(client: MatrixClient, name: string): Room | undefined {
  if (name.startsWith("!")) return client.getRoom(name) ?? undefined;
  return client.getRooms().find((r) => r.getCanonicalAlias() === name || r.getAltAliases().includes(name));
}
