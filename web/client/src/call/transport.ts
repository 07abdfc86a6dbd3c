import { MatrixError, type IOpenIDToken, type MatrixClient } from "matrix-js-sdk";
import type { CallMembershipIdentityParts } from "matrix-js-sdk/lib/matrixrtc/EncryptionManager";
import type { Transport } from "matrix-js-sdk/lib/matrixrtc";

/** A place to send media to, as it stands in a membership (MSC4195). */
export interface LiveKitTransport extends Transport {
  type: "livekit";
  livekit_service_url: string;
}

/** Where to connect and with which token. */
export interface Ticket {
  url: string;
  jwt: string;
}

/** Which step of getting into a call failed, and how the server put it. */
export class CallSetupError extends Error {
  constructor(
    readonly step: "transports" | "openid" | "token",
    readonly code: string,
    message: string,
  ) {
    super(message);
    this.name = "CallSetupError";
  }
}

/** The delay that a delegated leave is scheduled with; clients of other makes use the same. */
export const DELEGATED_DELAY_MS = 3_600_000;

/** chooseTransport takes the first LiveKit entry of a transports answer (MSC4143). */
export function chooseTransport(list: unknown): LiveKitTransport | undefined {
  if (!Array.isArray(list)) return undefined;
  for (const t of list as Record<string, unknown>[]) {
    if (t?.type === "livekit" && typeof t.livekit_service_url === "string" && t.livekit_service_url !== "") {
      return t as LiveKitTransport;
    }
  }
  return undefined;
}

/** discoverTransport asks the homeserver where media goes. */
export async function discoverTransport(client: MatrixClient): Promise<LiveKitTransport> {
  let list: unknown;
  try {
    list = await client._unstable_getRTCTransports();
  } catch (e) {
    throw new CallSetupError("transports", codeOf(e), messageOf(e));
  }
  const t = chooseTransport(list);
  if (!t) throw new CallSetupError("transports", "NO_TRANSPORT", "The homeserver names no place for calls.");
  return t;
}

/**
 * ticketForOwn gets a token for the SFU that we publish on, from the endpoint
 * that names a participant `user:device` (/sfu/get). With a delay ID it hands
 * our delayed leave to the service at the same time.
 */
export async function ticketForOwn(
  client: MatrixClient,
  serviceUrl: string,
  roomId: string,
  deviceId: string,
  delayId?: string,
): Promise<Ticket> {
  const body = { room: roomId, openid_token: await openId(client), device_id: deviceId };
  if (delayId === undefined) return post(serviceUrl + "/sfu/get", body);
  const delay = { delay_id: delayId, delay_timeout: DELEGATED_DELAY_MS, delay_cs_api_url: client.baseUrl };
  return post(serviceUrl + "/sfu/get", { ...body, ...delay });
}

/** ticketForOther gets a token to listen on somebody else's SFU: the newer endpoint first, then the older one. */
export async function ticketForOther(
  client: MatrixClient,
  serviceUrl: string,
  roomId: string,
  me: CallMembershipIdentityParts,
): Promise<Ticket> {
  try {
    return await post(serviceUrl + "/get_token", {
      room_id: roomId,
      slot_id: "m.call#ROOM",
      openid_token: await openId(client),
      member: { id: me.memberId, claimed_user_id: me.userId, claimed_device_id: me.deviceId },
    });
  } catch {
    return ticketForOwn(client, serviceUrl, roomId, me.deviceId);
  }
}

/**
 * canDelegateLeave finds out whether the service sends our leave for us when
 * we vanish. An unsigned request is enough: only 404 means no.
 */
export async function canDelegateLeave(client: MatrixClient, serviceUrl: string): Promise<boolean> {
  const probe = async (url: string) => {
    try {
      return (await fetch(url, { method: "POST" })).status !== 404;
    } catch {
      return false;
    }
  };
  const answers = await Promise.all([
    probe(`${client.baseUrl}/_matrix/client/unstable/io.element.msc4195/rtc/livekit/delegate_delayed_leave`),
    probe(`${serviceUrl}/delegate_delayed_leave`),
  ]);
  return answers.some(Boolean);
}

async function openId(client: MatrixClient): Promise<IOpenIDToken> {
  try {
    return await retry(() => client.getOpenIdToken());
  } catch (e) {
    throw new CallSetupError("openid", codeOf(e), messageOf(e));
  }
}

async function post(url: string, body: object): Promise<Ticket> {
  let res: Response;
  try {
    res = await retry(() =>
      fetch(url, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
    );
  } catch (e) {
    throw new CallSetupError("token", "NETWORK", messageOf(e));
  }
  const answer = (await res.json().catch(() => ({}))) as Partial<Ticket> & { errcode?: string; error?: string };
  if (!res.ok) throw new CallSetupError("token", answer.errcode ?? `HTTP_${res.status}`, answer.error ?? res.statusText);
  if (typeof answer.url !== "string" || typeof answer.jwt !== "string") {
    throw new CallSetupError("token", "BAD_ANSWER", "The call service sent no token.");
  }
  return { url: answer.url, jwt: answer.jwt };
}

/** retry tries again after a lost connection or a rate limit, three times in all. */
async function retry<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      const r = await work();
      if (!(r instanceof Response) || r.status !== 429 || attempt === 3) return r;
    } catch (e) {
      if ((e instanceof MatrixError && e.httpStatus !== 429) || attempt === 3) throw e;
    }
    await new Promise((done) => setTimeout(done, 400 * attempt * attempt));
  }
}

function codeOf(e: unknown): string {
  if (e instanceof MatrixError) return e.errcode ?? `HTTP_${e.httpStatus}`;
  return "NETWORK";
}

function messageOf(e: unknown): string {
  return e instanceof Error ? e.message : String(e);
}
