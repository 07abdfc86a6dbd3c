// A call without a server, for looking at (npm run dev, then /mock/). The query
// chooses what is shown: ?people=3&screen&trouble=ICE_UDP_BLOCKED&open.
import { render } from "preact";
import type { Track } from "livekit-client";
import type { Call, CallState } from "../src/call/call.ts";
import { buildScene, type Media, type Member, type Quality } from "../src/call/tiles.ts";
import { diagnose } from "../src/call/trouble.ts";
import { Store } from "../src/lib/store.ts";
import { CallView } from "../src/ui/callview.tsx";
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
const room = { name: "Monday standup", roomId: "!mock", getMember: () => null, getJoinedMembers: () => [], getJoinRule: () => "invite", getGuestAccess: () => "forbidden" };
const call = { state, encrypted, room, client: { getDomain: () => "hall.example" }, setMic: async (mic: boolean) => state.patch({ mic }), setCamera: async (camera: boolean) => state.patch({ camera }) } as unknown as Call;
render(<CallView call={call} />, document.getElementById("app")!);
