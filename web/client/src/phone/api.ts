import type { MatrixClient } from "matrix-js-sdk";
import { Store } from "../lib/store.ts";

/** How far a call to or from a telephone has come. It only moves forward. */
export type LegState = "new" | "trying" | "ringing" | "early" | "answered" | "confirmed" | "ended";

/** Why a call ended. */
export type Cause =
  | ""
  | "hangup"
  | "cancelled"
  | "busy"
  | "no_answer"
  | "rejected"
  | "wrong_number"
  | "not_allowed"
  | "no_line"
  | "media"
  | "removed"
  | "room_ended"
  | "transferred"
  | "limit"
  | "shutdown"
  | "failed";

export interface LegStats {
  packets: number;
  lost: number;
  jitter_ms: number;
  rtt_ms: number;
  mos: number;
  strangers: number;
}

/** One call between the server and a telephone. Times are in ms since 1970, 0 for "not yet". */
export interface Leg {
  id: string;
  direction: "inbound" | "outbound";
  state: LegState;
  trunk: string;
  room_id: string;
  identity: string;
  user_id: string;
  number: string;
  name: string;
  by: string;
  created: number;
  answered: number;
  ended: number;
  code: number;
  cause: Cause;
  text: string;
  codec: string;
  srtp: string;
  held: boolean;
  muted: boolean;
  hand: boolean;
  mine: boolean;
  stats: LegStats;
}

export interface DialIn {
  number: string;
  display: string;
  language?: string;
}

/** Whether the server has telephones at all. */
export interface PhoneConfig {
  enabled: boolean;
  dialOut: boolean;
  numbers: DialIn[];
}

/** A room's telephones: how to dial in, what the reader may do, who is there. */
export interface RoomPhones {
  numbers: DialIn[];
  pin: string;
  mayDial: boolean;
  mayChange: boolean;
  mayAdmit: boolean;
  e2ee: "allow" | "deny";
  encrypted: boolean;
  lobby: boolean;
  locked: boolean;
  waiting: Leg[];
  legs: Leg[];
}

/** What the server said no to, and why. */
export class PhoneError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly cause: Cause,
    message: string,
  ) {
    super(message);
    this.name = "PhoneError";
  }
}

const NONE: PhoneConfig = { enabled: false, dialOut: false, numbers: [] };

/** phoneConfig is what the server said when it was asked last; nothing before. */
export const phoneConfig = new Store<PhoneConfig>(NONE);

const text = (v: unknown): string => (typeof v === "string" ? v : "");
const number = (v: unknown): number => (typeof v === "number" && Number.isFinite(v) ? v : 0);
const record = (v: unknown): Record<string, unknown> => (typeof v === "object" && v !== null ? (v as Record<string, unknown>) : {});
const list = (v: unknown): unknown[] => (Array.isArray(v) ? v : []);

/** readLeg takes what is known of a leg; anything missing is empty. */
export function readLeg(raw: unknown): Leg {
  const o = record(raw);
  const s = record(o.stats);
  const states: LegState[] = ["new", "trying", "ringing", "early", "answered", "confirmed", "ended"];
  return {
    id: text(o.id),
    direction: o.direction === "inbound" ? "inbound" : "outbound",
    state: states.find((x) => x === o.state) ?? "new",
    trunk: text(o.trunk),
    room_id: text(o.room_id),
    identity: text(o.identity),
    user_id: text(o.user_id),
    number: text(o.number),
    name: text(o.name),
    by: text(o.by),
    created: number(o.created),
    answered: number(o.answered),
    ended: number(o.ended),
    code: number(o.code),
    cause: text(o.cause) as Cause,
    text: text(o.text),
    codec: text(o.codec),
    srtp: text(o.srtp),
    held: o.held === true,
    muted: o.muted === true,
    hand: o.hand === true,
    mine: o.mine === true,
    stats: {
      packets: number(s.packets),
      lost: number(s.lost),
      jitter_ms: number(s.jitter_ms),
      rtt_ms: number(s.rtt_ms),
      mos: number(s.mos),
      strangers: number(s.strangers),
    },
  };
}

function readNumbers(raw: unknown): DialIn[] {
  return list(raw)
    .map((n) => {
      const o = record(n);
      const bare = text(o.number);
      return { number: bare, display: text(o.display) || bare, ...(text(o.language) ? { language: text(o.language) } : {}) };
    })
    .filter((n) => n.number !== "");
}

/** readRoomPhones reads the answer about a room's telephones. */
export function readRoomPhones(raw: unknown): RoomPhones {
  const o = record(raw);
  return {
    numbers: readNumbers(o.numbers),
    pin: text(o.pin),
    mayDial: o.may_dial === true,
    mayChange: o.may_change === true,
    mayAdmit: o.may_admit === true,
    e2ee: o.e2ee === "allow" ? "allow" : "deny",
    encrypted: o.encrypted === true,
    lobby: o.lobby === true,
    locked: o.locked === true,
    waiting: list(o.waiting).map(readLeg),
    legs: list(o.legs).map(readLeg),
  };
}

/** request asks Trunkhall's own API as the signed-in user. It throws PhoneError. */
export async function request(client: MatrixClient, method: string, path: string, body?: object, signal?: AbortSignal): Promise<unknown> {
  let res: Response;
  try {
    res = await fetch(client.baseUrl + path, {
      method,
      headers: { Authorization: `Bearer ${client.getAccessToken() ?? ""}`, ...(body ? { "Content-Type": "application/json" } : {}) },
      ...(body ? { body: JSON.stringify(body) } : {}),
      ...(signal ? { signal } : {}),
      cache: "no-store",
    });
  } catch (e) {
    throw new PhoneError(0, "NETWORK", "", e instanceof Error ? e.message : String(e));
  }
  const answer = record(await res.json().catch(() => undefined));
  if (!res.ok) throw new PhoneError(res.status, text(answer.errcode) || `HTTP_${res.status}`, text(answer.cause) as Cause, text(answer.error) || res.statusText);
  return answer;
}

const base = "/_trunkhall/phones/v1";
const roomPath = (roomId: string): string => `${base}/rooms/${encodeURIComponent(roomId)}`;
const legPath = (id: string): string => `${base}/legs/${encodeURIComponent(id)}`;

/** askPhones finds out whether this server has telephones. Servers without them answer 404. */
export async function askPhones(client: MatrixClient): Promise<void> {
  try {
    const o = record(await request(client, "GET", `${base}/config`));
    phoneConfig.set({ enabled: o.enabled === true, dialOut: o.dial_out === true, numbers: readNumbers(o.numbers) });
  } catch {
    phoneConfig.set(NONE);
  }
}

export const roomPhones = async (client: MatrixClient, roomId: string): Promise<RoomPhones> => readRoomPhones(await request(client, "GET", roomPath(roomId)));

export const newPin = async (client: MatrixClient, roomId: string): Promise<void> => void (await request(client, "POST", `${roomPath(roomId)}/pin`, {}));

export const setRoomPhones = async (client: MatrixClient, roomId: string, change: { e2ee?: "allow" | "deny"; lobby?: boolean; locked?: boolean }): Promise<void> =>
  void (await request(client, "PUT", `${roomPath(roomId)}/settings`, change));

export const dial = async (client: MatrixClient, roomId: string, to: string): Promise<Leg> => readLeg(await request(client, "POST", `${roomPath(roomId)}/dial`, { number: to }));

/** follow waits until the leg's state differs from the one seen, or the server's patience ends. */
export const follow = async (client: MatrixClient, id: string, seen: LegState, signal: AbortSignal): Promise<Leg> =>
  readLeg(await request(client, "GET", `${legPath(id)}?seen=${seen}&timeout=25000`, undefined, signal));

export const pressDigits = async (client: MatrixClient, id: string, digits: string): Promise<void> => void (await request(client, "POST", `${legPath(id)}/digits`, { digits }));

export const hangUp = async (client: MatrixClient, id: string): Promise<void> => void (await request(client, "POST", `${legPath(id)}/hangup`, {}));

export const admit = async (client: MatrixClient, id: string, yes: boolean): Promise<void> => void (await request(client, "POST", `${legPath(id)}/admit`, { admit: yes }));

/** spacedPin groups a PIN for reading aloud: 123 456. */
export function spacedPin(pin: string): string {
  const size = pin.length % 3 === 0 ? 3 : pin.length % 4 === 0 ? 4 : 3;
  return pin.match(new RegExp(`.{1,${size}}`, "g"))?.join(" ") ?? "";
}

/** dialable keeps of what was typed or pasted only what a telephone number may have. */
export function dialable(typed: string): string {
  const [number = ""] = typed.split(";");
  return number.replace(/[^0-9+*#() ./-]/g, "").trimStart().slice(0, 40);
}
