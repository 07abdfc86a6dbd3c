/** Finding out why media does not flow, and saying so. Pure: evidence in, verdict out. */

/** Which part of the way failed. */
export type Path =
  | "server" // the homeserver does not answer
  | "transports" // it names no place for calls
  | "token" // the call service gives no token
  | "membership" // the room does not let us announce ourselves
  | "signal" // the WebSocket to the media server
  | "media" // no media path at all: neither UDP, TCP nor a relay
  | "udp" // media only by a detour
  | "keys" // no keys for what arrives
  | "microphone"
  | "camera"
  | "screen"
  | "removed"
  | "elsewhere" // the same device joined in another tab
  | "unknown";

export interface Trouble {
  path: Path;
  /** Short and stable, for people who help. */
  code: string;
  /** Whether the call goes on regardless. */
  fatal: boolean;
  details: Record<string, string>;
}

/** The pair of addresses in use, or tried, by an ICE agent. */
export interface IceReport {
  state: string;
  /** Candidate kinds on our side, for example `host/udp`, `relay/tcp`. */
  local: string[];
  remote: string[];
  /** The pair that carries media, if any: `relay/udp -> host/udp`. */
  selected?: string;
}

/** What a quick look at the relays found, by transport. */
export interface RelayReport {
  udp: "ok" | "failed" | "untested";
  tcp: "ok" | "failed" | "untested";
  tls: "ok" | "failed" | "untested";
}

export interface Evidence {
  serverReachable: boolean;
  setup?: { step: "transports" | "openid" | "token"; code: string; message: string };
  membership?: string;
  signalOpen: boolean;
  signalError?: string;
  ice?: IceReport;
  relays?: RelayReport;
}

/** diagnose names the first broken piece of the way, in the order in which the way is built. */
export function diagnose(e: Evidence): Trouble {
  const details: Record<string, string> = {};
  if (e.setup) details.setup = `${e.setup.step}: ${e.setup.message}`;
  if (e.membership) details.membership = e.membership;
  if (e.signalError) details.signal = e.signalError;
  if (e.ice) {
    details.ice = e.ice.state;
    details.local = e.ice.local.join(", ") || "none";
    details.remote = e.ice.remote.join(", ") || "none";
    if (e.ice.selected) details.pair = e.ice.selected;
  }
  if (e.relays) details.relays = `udp ${e.relays.udp}, tcp ${e.relays.tcp}, tls ${e.relays.tls}`;
  const verdict = (path: Path, code: string): Trouble => ({ path, code, fatal: true, details });

  if (!e.serverReachable) return verdict("server", "SERVER_UNREACHABLE");
  if (e.setup?.step === "transports") return verdict("transports", e.setup.code);
  if (e.setup) return verdict("token", e.setup.code);
  if (e.membership) return verdict("membership", "MEMBERSHIP_FAILED");
  if (!e.signalOpen) return verdict("signal", e.signalError ? "SIGNAL_REFUSED" : "SIGNAL_TIMEOUT");
  if (!e.ice || e.ice.remote.length === 0) return verdict("media", "ICE_NO_CANDIDATES");
  const r = e.relays;
  if (r?.udp === "failed" && (r.tcp === "failed" || r.tls === "failed")) return verdict("media", "ICE_ALL_PATHS_FAILED");
  if (r?.udp === "failed") return verdict("media", "ICE_UDP_BLOCKED");
  return verdict("media", `ICE_${e.ice.state.toUpperCase()}`);
}

/** isFinal reports whether trying again by itself would change nothing. */
export function isFinal(code: string): boolean {
  return ["M_FORBIDDEN", "NO_TRANSPORT", "M_UNKNOWN_TOKEN", "NO_FRAME_ENCRYPTION", "MEMBERSHIP_FAILED"].includes(code);
}

/** readIce boils a connection's statistics down to what matters for a diagnosis. */
export function readIce(stats: Iterable<Record<string, unknown>>, state: string): IceReport {
  const local = new Map<string, string>();
  const remote = new Map<string, string>();
  const pairs: Record<string, unknown>[] = [];
  let selectedId: unknown;
  for (const s of stats) {
    const kind = `${String(s.candidateType ?? "?")}/${String(s.relayProtocol ?? s.protocol ?? "?")}`;
    if (s.type === "local-candidate") local.set(String(s.id), kind);
    else if (s.type === "remote-candidate") remote.set(String(s.id), kind);
    else if (s.type === "candidate-pair") pairs.push(s);
    else if (s.type === "transport" && s.selectedCandidatePairId) selectedId = s.selectedCandidatePairId;
  }
  const pair = pairs.find((p) => p.id === selectedId) ?? pairs.find((p) => p.nominated === true && p.state === "succeeded");
  const unique = (m: Map<string, string>) => [...new Set(m.values())].sort();
  return {
    state,
    local: unique(local),
    remote: unique(remote),
    ...(pair
      ? { selected: `${local.get(String(pair.localCandidateId)) ?? "?"} -> ${remote.get(String(pair.remoteCandidateId)) ?? "?"}` }
      : {}),
  };
}

/** How media travels, judged by the pair in use. */
export function routeOf(ice: IceReport | undefined): "udp" | "tcp" | "relay-udp" | "relay-tcp" | undefined {
  if (!ice?.selected) return undefined;
  const mine = ice.selected.split(" -> ")[0]!;
  if (mine.startsWith("relay/")) return mine.endsWith("/udp") ? "relay-udp" : "relay-tcp";
  return mine.endsWith("/tcp") ? "tcp" : "udp";
}

/** formatDetails is what the copy button copies: no names, keys, tokens or addresses. */
export function formatDetails(t: Trouble, context: Record<string, string>): string {
  const rows = { code: t.code, path: t.path, ...t.details, ...context };
  return Object.entries(rows)
    .map(([k, v]) => `${k}: ${v}`)
    .join("\n");
}
