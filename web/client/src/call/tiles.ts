/**
 * Who and what is shown in a call. Pure: memberships (who the Matrix room says
 * is in the call) and media participants in, tiles out. A participant of the
 * media server that no membership speaks for is never shown or heard.
 */

/** What this file needs to know of a membership. */
export interface Member {
  userId: string;
  deviceId: string;
  identity: string;
  service: string | undefined;
  eventId: string | undefined;
  joinedAt: number;
}

export type Quality = "excellent" | "good" | "poor" | "lost" | "unknown";

/** One published track, as far as tiles care. */
export interface Media<T> {
  track: T | undefined;
  muted: boolean;
  encrypted: boolean;
}

/** A participant of a media server, as far as tiles care. */
export interface Person<T> {
  identity: string;
  local: boolean;
  mic: Media<T> | undefined;
  camera: Media<T> | undefined;
  screen: Media<T> | undefined;
  screenAudio: Media<T> | undefined;
  speaking: boolean;
  level: number;
  quality: Quality;
  /** Set when this is a telephone. */
  phone?: Phone | undefined;
}

/** What a participant's attributes tell of the telephone behind it. */
export interface Phone {
  /** dialing, ringing, automation, active or hangup, as LiveKit names them. */
  status: string;
  held: boolean;
  hand: boolean;
}

/** phoneOf reads a participant of kind SIP; undefined for everybody else. */
export function phoneOf(isSip: boolean, attributes: Readonly<Record<string, string>>): Phone | undefined {
  if (!isSip) return undefined;
  return { status: attributes["sip.callStatus"] ?? "active", held: attributes["sip.hold"] === "true", hand: attributes["trunkhall.hand"] === "true" };
}

export interface Tile<T> {
  key: string;
  kind: "camera" | "screen";
  identity: string;
  userId: string;
  name: string;
  local: boolean;
  /** No media connection with this person yet. */
  waiting: boolean;
  muted: boolean;
  video: T | undefined;
  speaking: boolean;
  quality: Quality;
  hand: boolean;
  /** The room is encrypted, but what this person sends is not. */
  plain: boolean;
  /** Their frames arrive but there is no key for them yet. */
  keyless: boolean;
  /** Not the first device of this person in the call. */
  otherDevice: boolean;
  /** Set when this is a telephone. */
  phone: Phone | undefined;
}

/** A track to be heard. */
export interface Sound<T> {
  key: string;
  track: T;
}

export interface Scene<T> {
  tiles: Tile<T>[];
  sounds: Sound<T>[];
}

export interface SceneOptions<T> {
  ownIdentity: string;
  encrypted: boolean;
  person: (identity: string, service: string | undefined) => Person<T> | undefined;
  name: (userId: string) => string;
  hand: (m: Member) => boolean;
  keyless: (identity: string) => boolean;
}

/** buildScene makes the tiles, oneself last, and the list of what is to be heard. */
export function buildScene<T>(members: Member[], o: SceneOptions<T>): Scene<T> {
  const tiles: Tile<T>[] = [];
  const sounds: Sound<T>[] = [];
  const seen = new Set<string>();
  const users = new Set<string>();
  const sorted = [...members].sort((a, b) => a.joinedAt - b.joinedAt || (a.identity < b.identity ? -1 : 1));
  for (const m of sorted) {
    if (seen.has(m.identity)) continue;
    seen.add(m.identity);
    const p = o.person(m.identity, m.service);
    const local = m.identity === o.ownIdentity;
    const sent = [p?.mic, p?.camera, p?.screen, p?.screenAudio].filter((x) => x !== undefined);
    const base = {
      identity: m.identity,
      userId: m.userId,
      name: o.name(m.userId),
      local,
      waiting: p === undefined,
      speaking: p?.speaking ?? false,
      quality: p?.quality ?? "unknown",
      hand: o.hand(m) || (p?.phone?.hand ?? false),
      plain: o.encrypted && sent.some((x) => !x.encrypted),
      keyless: o.encrypted && !local && o.keyless(m.identity),
      otherDevice: users.has(m.userId),
      phone: p?.phone,
    } as const;
    users.add(m.userId);
    const screen = p?.screen;
    if (screen && !screen.muted) {
      tiles.push({ ...base, key: `${m.identity}/screen`, kind: "screen", muted: !p?.screenAudio, video: screen.track, speaking: false, hand: false });
    }
    const camera = p?.camera;
    tiles.push({
      ...base,
      key: `${m.identity}/camera`,
      kind: "camera",
      muted: !p?.mic || p.mic.muted,
      video: camera && !camera.muted ? camera.track : undefined,
    });
    if (local) continue;
    if (p?.mic?.track && !p.mic.muted) sounds.push({ key: `${m.identity}/mic`, track: p.mic.track });
    if (p?.screenAudio?.track) sounds.push({ key: `${m.identity}/screen-audio`, track: p.screenAudio.track });
  }
  tiles.sort((a, b) => Number(a.local && a.kind === "camera") - Number(b.local && b.kind === "camera"));
  return { tiles, sounds };
}

/**
 * chooseStage picks the tile that gets the large place: the pinned one, else
 * a shared screen (others' before one's own), else in spotlight mode who
 * spoke last, else nobody.
 */
export function chooseStage<T>(tiles: Tile<T>[], pinned: string | undefined, spotlight: boolean, lastSpeaker: string | undefined): string | undefined {
  if (pinned !== undefined && tiles.some((t) => t.key === pinned)) return pinned;
  const screens = tiles.filter((t) => t.kind === "screen");
  const screen = screens.find((t) => !t.local) ?? screens[0];
  if (screen) return screen.key;
  if (!spotlight) return undefined;
  const cameras = tiles.filter((t) => t.kind === "camera");
  const speaker = cameras.find((t) => t.identity === lastSpeaker && !t.local);
  return (speaker ?? cameras.find((t) => !t.local) ?? cameras[0])?.key;
}
