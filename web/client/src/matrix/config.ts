/** What the page knows about its server before anybody has signed in. */
export interface ServerConfig {
  baseUrl: string;
  serverName?: string;
}

/** Whether and how an account can be made here. */
export type Registration = "open" | "token" | "closed" | "unknown";

/** The answer of one look at the server. */
export interface ServerState {
  reachable: boolean;
  ms?: number;
  registration: Registration;
}

/**
 * readConfig reads /config.json as the server writes it. Everything is
 * optional: without an address the page talks to where it came from.
 */
export function readConfig(raw: unknown, origin: string): ServerConfig {
  const o = (typeof raw === "object" && raw !== null ? raw : {}) as Record<string, unknown>;
  const base = typeof o.homeserver_base_url === "string" ? o.homeserver_base_url : "";
  const name = typeof o.server_name === "string" ? o.server_name : "";
  return {
    baseUrl: /^https?:\/\//.test(base) ? base.replace(/\/+$/, "") : origin,
    ...(name !== "" ? { serverName: name } : {}),
  };
}

export async function loadConfig(): Promise<ServerConfig> {
  let raw: unknown;
  try {
    const res = await fetch("/config.json", { headers: { Accept: "application/json" } });
    if (res.ok && (res.headers.get("content-type") ?? "").includes("json")) raw = await res.json();
  } catch {
    // No file, no network: the defaults will do, and the state line tells.
  }
  return readConfig(raw, location.origin);
}

/**
 * registrationFrom reads the answer to an empty registration request: 401
 * lists the ways to register (Matrix client-server API, "User-interactive
 * authentication"), 403 means that there are none.
 */
export function registrationFrom(status: number, body: unknown): Registration {
  if (status === 403) return "closed";
  if (status !== 401) return "unknown";
  const flows = (body as { flows?: { stages?: unknown }[] } | undefined)?.flows;
  if (!Array.isArray(flows)) return "unknown";
  const stages = flows.map((f) => (Array.isArray(f?.stages) ? (f.stages as string[]) : []));
  const only = (allowed: string[]) => stages.some((s) => s.every((x) => allowed.includes(x)));
  if (only(["m.login.dummy"])) return "open";
  if (only(["m.login.dummy", "m.login.registration_token"])) return "token";
  return "closed";
}

/** pingServer measures how long the server takes to answer; undefined means that it does not. */
export async function pingServer(config: ServerConfig): Promise<number | undefined> {
  const began = performance.now();
  try {
    const res = await fetch(`${config.baseUrl}/_matrix/client/versions`, { cache: "no-store" });
    if (!res.ok) return undefined;
    await res.json();
  } catch {
    return undefined;
  }
  return Math.round(performance.now() - began);
}

/** lookAtServer asks whether the server answers and whether it takes new accounts. */
export async function lookAtServer(config: ServerConfig): Promise<ServerState> {
  const ms = await pingServer(config);
  if (ms === undefined) return { reachable: false, registration: "unknown" };
  let registration: Registration = "unknown";
  try {
    const res = await fetch(`${config.baseUrl}/_matrix/client/v3/register`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "{}",
    });
    registration = registrationFrom(res.status, await res.json().catch(() => undefined));
  } catch {
    // Reachable a moment ago; the form will say so if it stays away.
  }
  return { reachable: true, ms, registration };
}
