import type { MatrixClient } from "matrix-js-sdk";
import { readLeg, request, type Leg } from "./api.ts";

/** A telephone line as it does now. */
export interface TrunkRow {
  id: string;
  name: string;
  direction: string;
  source: string;
  registered: string;
  up: boolean;
  ping_ms: number;
  problem: string;
  since: number;
  calls: number;
  max_calls: number;
  targets: string[];
}

/** One past call. Times are in ms since 1970. */
export interface RecordRow {
  id: string;
  dir: string;
  trunk: string;
  from: string;
  to: string;
  room: string;
  start: number;
  answer: number;
  end: number;
  codec: string;
  cause: string;
  text: string;
  code: number;
  mos: number;
}

export interface BanRow {
  source: string;
  why: string;
  since: number;
  until: number;
}

/** Everything the operator's page shows, as of one moment. */
export interface Overview {
  trunks: TrunkRow[];
  legs: Leg[];
  records: RecordRow[];
  bans: BanRow[];
  callsToday: number;
  minutesToday: number;
}

type Raw = Record<string, unknown>;
const rows = (v: unknown): Raw[] => (Array.isArray(v) ? v.filter((x): x is Raw => typeof x === "object" && x !== null) : []);
const str = (v: unknown): string => (typeof v === "string" ? v : "");
const num = (v: unknown): number => (typeof v === "number" && Number.isFinite(v) ? v : 0);

/** readOverview reads the server's answer; what is missing is empty. */
export function readOverview(raw: unknown): Overview {
  const o = (typeof raw === "object" && raw !== null ? raw : {}) as Raw;
  const totals = (typeof o.totals === "object" && o.totals !== null ? o.totals : {}) as Raw;
  return {
    trunks: rows(o.trunks).map((x) => ({
      id: str(x.id),
      name: str(x.name),
      direction: str(x.direction),
      source: str(x.source),
      registered: str(x.registered),
      up: x.up === true,
      ping_ms: num(x.ping_ms),
      problem: str(x.problem),
      since: num(x.since),
      calls: num(x.calls),
      max_calls: num(x.max_calls),
      targets: Array.isArray(x.targets) ? x.targets.map(str).filter(Boolean) : [],
    })),
    legs: rows(o.legs).map(readLeg),
    records: rows(o.records).map((x) => ({
      id: str(x.id),
      dir: str(x.dir),
      trunk: str(x.trunk),
      from: str(x.from),
      to: str(x.to),
      room: str(x.room),
      start: num(x.start),
      answer: num(x.answer),
      end: num(x.end),
      codec: str(x.codec),
      cause: str(x.cause),
      text: str(x.text),
      code: num(x.code),
      mos: num(x.mos),
    })),
    bans: rows(o.bans).map((x) => ({ source: str(x.source), why: str(x.why), since: num(x.since), until: num(x.until) })),
    callsToday: num(totals.calls_today),
    minutesToday: num(totals.minutes_today),
  };
}

const base = "/_trunkhall/admin/v1";

export const overview = async (client: MatrixClient, signal: AbortSignal): Promise<Overview> => readOverview(await request(client, "GET", `${base}/phones`, undefined, signal));

export const cutOff = async (client: MatrixClient, leg: string): Promise<void> => void (await request(client, "POST", `${base}/phones/legs/${encodeURIComponent(leg)}/hangup`, {}));

export const liftBan = async (client: MatrixClient, source: string): Promise<void> => void (await request(client, "DELETE", `${base}/phones/bans/${encodeURIComponent(source)}`));

/** lossPercent is the share of packets that never came, 0 to 100. */
export function lossPercent(packets: number, lost: number): number {
  const all = packets + lost;
  return all <= 0 ? 0 : (100 * lost) / all;
}

/** mosWord says what an estimated MOS (ITU-T G.107) means for people. */
export function mosWord(mos: number): "good" | "fair" | "poor" | "unknown" {
  if (mos <= 0) return "unknown";
  return mos >= 3.8 ? "good" : mos >= 3.1 ? "fair" : "poor";
}
