import type { MatrixClient } from "matrix-js-sdk";
import type { RelayReport } from "./trouble.ts";

interface TurnAnswer {
  username?: string;
  password?: string;
  uris?: string[];
}

/** sortRelays splits TURN addresses by the transport that leads to them. */
export function sortRelays(uris: string[]): Record<keyof RelayReport, string[]> {
  const out: Record<keyof RelayReport, string[]> = { udp: [], tcp: [], tls: [] };
  for (const uri of uris) {
    if (uri.startsWith("turns:")) out.tls.push(uri);
    else if (uri.startsWith("turn:")) (/[?&]transport=tcp/.test(uri) ? out.tcp : out.udp).push(uri);
  }
  return out;
}

/**
 * checkRelays tries to get a relay address from the server's TURN service over
 * each transport it offers. That proves that packets of that kind leave this
 * network and come back.
 */
export async function checkRelays(client: MatrixClient, timeoutMs = 4000): Promise<RelayReport> {
  let turn: TurnAnswer;
  try {
    turn = (await client.turnServer()) as TurnAnswer;
  } catch {
    return { udp: "untested", tcp: "untested", tls: "untested" };
  }
  const groups = sortRelays(turn.uris ?? []);
  const one = async (urls: string[]): Promise<"ok" | "failed" | "untested"> => {
    if (urls.length === 0) return "untested";
    return (await gathersRelay({ urls, username: turn.username ?? "", credential: turn.password ?? "" }, timeoutMs)) ? "ok" : "failed";
  };
  const [udp, tcp, tls] = await Promise.all([one(groups.udp), one(groups.tcp), one(groups.tls)]);
  return { udp, tcp, tls };
}

async function gathersRelay(server: RTCIceServer, timeoutMs: number): Promise<boolean> {
  let pc: RTCPeerConnection;
  try {
    pc = new RTCPeerConnection({ iceServers: [server], iceTransportPolicy: "relay" });
  } catch {
    return false;
  }
  try {
    return await new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => resolve(false), timeoutMs);
      const done = (ok: boolean) => {
        clearTimeout(timer);
        resolve(ok);
      };
      pc.onicecandidate = (ev) => {
        if (ev.candidate === null) done(false);
        else if (ev.candidate.candidate.includes(" typ relay")) done(true);
      };
      pc.createDataChannel("check");
      pc.createOffer()
        .then((o) => pc.setLocalDescription(o))
        .catch(() => done(false));
    });
  } finally {
    pc.close();
  }
}
