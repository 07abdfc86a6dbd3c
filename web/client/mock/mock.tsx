// A call without a server, for looking at (npm run dev, then /mock/). The query
// chooses what is shown: ?people=3&screen&trouble=ICE_UDP_BLOCKED&open, and with
// telephones ?phone, ?phone&panel (a room's telephones) or ?operator.
import { render } from "preact";
import type { Track } from "livekit-client";
import type { Call, CallState } from "../src/call/call.ts";
import { buildScene, type Media, type Member, type Quality } from "../src/call/tiles.ts";
import { diagnose } from "../src/call/trouble.ts";
import type { MatrixClient } from "matrix-js-sdk";
import { app } from "../src/app.ts";
import { Store } from "../src/lib/store.ts";
import { phoneConfig } from "../src/phone/api.ts";
import { CallView } from "../src/ui/callview.tsx";
import { Operator } from "../src/ui/operator.tsx";
import "../src/style.css";

const q = new URLSearchParams(location.search);
const names = ["Mia Berg", "Tom Okafor", "Ana Lucía", "Jürgen", "Sakura Tanaka", "Wei", "Noor Haddad", "Ola"];
const count = Number(q.get("people") ?? 3);
const encrypted = !q.has("open");

function picture(i: number, screen = false): Track {
  const canvas = document.createElement("canvas");
  canvas.width = 1280;
  canvas.height = 720;
  const c = canvas.getContext("2d")!;
  const draw = () => {
    const g = c.createLinearGradient(0, 0, 1280, 720);
    g.addColorStop(0, screen ? "#f6f7f9" : `hsl(${i * 67 + 20} 30% 46%)`);
    g.addColorStop(1, screen ? "#dfe4ea" : `hsl(${i * 67 + 60} 36% 22%)`);
    c.fillStyle = g;
    c.fillRect(0, 0, 1280, 720);
    c.fillStyle = screen ? "#39414d" : `hsl(${i * 67} 34% 66%)`;
    if (screen) for (let y = 0; y < 12; y++) c.fillRect(90, 90 + y * 46, 300 + ((y * 397) % 700), 16);
    else {
      c.beginPath();
      c.arc(640, 300, 120, 0, 7);
      c.arc(640, 740, 290, 0, 7);
      c.fill();
    }
  };
  draw();
  setInterval(draw, 500);
  const stream = canvas.captureStream(5);
  return { attach: (el: HTMLVideoElement) => (el.srcObject = stream), detach: (el: HTMLVideoElement) => (el.srcObject = null) } as unknown as Track;
}

const media = (track: Track | undefined, muted = false): Media<Track> => ({ track, muted, encrypted });
const members: Member[] = [];
for (let i = 0; i < count; i++) {
  members.push({ userId: `@${names[i % 8]!.split(" ")[0]!.toLowerCase()}${i}:hall.example`, deviceId: "D", identity: `p${i}`, service: "s", eventId: "$", joinedAt: i });
}
const pictures = members.map((_, i) => picture(i));
const screen = picture(0, true);
const qualities: Quality[] = ["excellent", "good", "poor"];
const scene = buildScene<Track>(members, {
  ownIdentity: "p0",
  encrypted,
  person: (identity) => {
    const i = Number(identity.slice(1));
    if (i === 5) return undefined;
    return {
      identity,
      local: i === 0,
      mic: { ...media({} as Track, i === 2), encrypted: i !== 4 && encrypted },
      camera: media(pictures[i], i === 3),
      screen: i === 1 && q.has("screen") ? media(screen) : undefined,
      screenAudio: undefined,
      speaking: i === 1,
      level: 0,
      quality: qualities[i % 3]!,
      phone: q.has("phone") && i === 2 ? { status: "active", held: q.has("held"), hand: q.has("hand") } : undefined,
    };
  },
  name: (userId) => names[members.findIndex((m) => m.userId === userId) % 8]!,
  hand: (m) => m.identity === "p2",
  keyless: (identity) => identity === "p6",
});
scene.sounds = [];
const trouble = q.has("trouble")
  ? diagnose({ serverReachable: true, signalOpen: q.get("trouble") !== "signal", ice: { state: "checking", local: ["host/udp"], remote: ["host/udp"] }, relays: { udp: "failed", tcp: "ok", tls: "untested" } })
  : undefined;

const state = new Store<CallState>({
  phase: trouble ? "joining" : "connected",
  scene,
  startedAt: trouble ? undefined : Date.now() - 754_000,
  mic: true,
  camera: true,
  sharing: false,
  hand: false,
  deviceTrouble: undefined,
  trouble,
  soundBlocked: false,
  lastSpeaker: "p1",
  quality: "good",
  route: "udp",
  ended: undefined,
});
const room = {
  name: "Monday standup",
  roomId: "!mock",
  getMember: () => null,
  getMembers: () => [],
  getJoinedMembers: () => [],
  getJoinRule: () => "invite",
  getGuestAccess: () => "forbidden",
  canInvite: () => false,
};
const call = { state, encrypted, room, client: { getDomain: () => "hall.example" }, setMic: async (mic: boolean) => state.patch({ mic }), setCamera: async (camera: boolean) => state.patch({ camera }) } as unknown as Call;

// What a server with telephones would say.
const minutes = 60_000;
const leg = (more: object) => ({ id: "SCL_1", direction: "inbound", state: "confirmed", trunk: "provider", number: "+49 30 ***456", name: "", answered: Date.now() - 4 * minutes, codec: "PCMU", stats: { packets: 12_000, lost: 24, jitter_ms: 6, mos: 4.2 }, ...more });
const answers: Record<string, object> = {
  "GET /_trunkhall/phones/v1/rooms/!mock": {
    numbers: [{ number: "+4930123456", display: "+49 30 123456" }],
    pin: "482913",
    may_dial: true,
    may_change: true,
    may_admit: true,
    e2ee: "allow",
    encrypted,
    waiting: q.has("waiting") ? [leg({ id: "SCL_9", number: "+49 171 ***89" })] : [],
    legs: [leg({ identity: "p2" })],
  },
  "POST /_trunkhall/phones/v1/rooms/!mock/dial": leg({ id: "SCL_2", direction: "outbound", state: "ringing", number: "+43 1 58058", answered: 0 }),
  "GET /_trunkhall/phones/v1/legs/SCL_2": leg({ id: "SCL_2", direction: "outbound", state: "ended", cause: "busy", code: 486, number: "+43 1 58058" }),
  "GET /_trunkhall/admin/v1/phones": {
    trunks: [
      { id: "provider", name: "Provider", direction: "both", registered: "registered", up: true, ping_ms: 18, calls: 2, max_calls: 30, targets: ["sip:sip.example.net;transport=tls"] },
      { id: "pbx", direction: "inbound", up: false, problem: "No answer to OPTIONS since 12:04: is 192.0.2.10 switched on, does a firewall drop UDP 5060?", calls: 0, targets: ["sip:192.0.2.10"] },
    ],
    legs: [leg({}), leg({ id: "SCL_2", name: "Jürgen", held: true, codec: "G722", srtp: "sdes", stats: { packets: 900, lost: 60, jitter_ms: 41, mos: 2.9, strangers: 3 } })],
    records: [
      { id: "a", dir: "inbound", trunk: "provider", from: "+49 171 ***89", to: "+49 30 123456", start: Date.now() - 60 * minutes, answer: Date.now() - 60 * minutes, end: Date.now() - 48 * minutes, cause: "hangup", mos: 4.3 },
      { id: "b", dir: "outbound", trunk: "provider", from: "+49 30 123450", to: "+43 1 ***58", start: Date.now() - 90 * minutes, end: Date.now() - 89 * minutes, cause: "busy", code: 486 },
    ],
    bans: [{ source: "198.51.100.23", why: "scanner: friendly-scanner", since: Date.now() - minutes, until: Date.now() + 59 * minutes }],
    totals: { calls_today: 14, minutes_today: 212 },
  },
};
if (q.has("phone") || q.has("operator")) {
  phoneConfig.set({ enabled: true, dialOut: true, numbers: [] });
  app.patch({ client: { baseUrl: location.origin, getAccessToken: () => "mock", getSafeUserId: () => "@mia0:hall.example", getDomain: () => "hall.example" } as unknown as MatrixClient });
  const real = window.fetch.bind(window);
  window.fetch = async (input, init) => {
    const url = new URL(String(input instanceof Request ? input.url : input), location.href);
    const answer = answers[`${init?.method ?? "GET"} ${decodeURIComponent(url.pathname)}`];
    if (!url.pathname.startsWith("/_trunkhall/")) return real(input, init);
    if (url.pathname.includes("/legs/")) await new Promise((done) => setTimeout(done, 1500));
    return answer ? Response.json(answer) : Response.json({ errcode: "M_NOT_FOUND", error: "nothing here" }, { status: 404 });
  };
}
const screenOf = q.has("operator") ? <Operator /> : <CallView call={call} />;
render(screenOf, document.getElementById("app")!);
