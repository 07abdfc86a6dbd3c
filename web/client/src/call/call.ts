import { DisconnectReason, isE2EESupported, Track, type LocalAudioTrack, type LocalVideoTrack } from "livekit-client";
import {
  EventType,
  KnownMembership,
  RelationType,
  RoomEvent as MatrixRoomEvent,
  RoomStateEvent,
  type MatrixClient,
  type Room as MatrixRoom,
} from "matrix-js-sdk";
import {
  MatrixRTCSessionEvent,
  MembershipManagerEvent,
  type CallMembership,
  type MatrixRTCSession,
} from "matrix-js-sdk/lib/matrixrtc";
import type { CallMembershipIdentityParts } from "matrix-js-sdk/lib/matrixrtc/EncryptionManager";
import { coalesce, Store } from "../lib/store.ts";
import { nameOf } from "../matrix/rooms.ts";
import { Connection } from "./connection.ts";
import { deviceProblem, prefer } from "./devices.ts";
import { MatrixKeys } from "./keys.ts";
import { checkRelays } from "./netcheck.ts";
import { buildScene, type Member, type Person, type Quality, type Scene } from "./tiles.ts";
import {
  canDelegateLeave,
  CallSetupError,
  DELEGATED_DELAY_MS,
  discoverTransport,
  ticketForOther,
  ticketForOwn,
  type LiveKitTransport,
} from "./transport.ts";
import { diagnose, isFinal, routeOf, type Path, type Trouble } from "./trouble.ts";

export type Phase = "joining" | "connected" | "reconnecting" | "ended";

/** Why a call is over. */
export type EndReason = "left" | "removed" | "banned" | "elsewhere" | "signed-out";

export interface CallState {
  phase: Phase;
  scene: Scene<Track>;
  /** Set when media first flowed. */
  startedAt: number | undefined;
  mic: boolean;
  camera: boolean;
  sharing: boolean;
  hand: boolean;
  /** A microphone, camera or screen that could not be had. */
  deviceTrouble: Trouble | undefined;
  trouble: Trouble | undefined;
  soundBlocked: boolean;
  lastSpeaker: string | undefined;
  quality: Quality;
  route: ReturnType<typeof routeOf>;
  ended: { reason: EndReason; by?: string; text?: string } | undefined;
}

/** What is left to tell when a call is over. */
export interface CallSummary {
  roomId: string;
  roomName: string;
  reason: EndReason;
  by?: string;
  text?: string;
  seconds: number;
  people: string[];
  /** Share of the time with a good connection, 0 to 1; undefined if it never connected. */
  good: number | undefined;
}

/** Tracks that the lobby has already opened. */
export interface Prepared {
  audio?: LocalAudioTrack;
  video?: LocalVideoTrack;
}

const HAND = "🖐️";
const TROUBLE_AFTER_MS = 7500;
/** Looking for the cause starts early enough to have it when the time is up. */
const LOOK_AFTER_MS = 4000;
const LOOK_AGAIN_MS = 5000;
const KEYLESS_FOR_MS = 4000;

const EMPTY: Scene<Track> = { tiles: [], sounds: [] };

/**
 * One call: our membership in the room, the connection we publish on, and one
 * listening connection for each other media server that somebody publishes on.
 * Create it, call start once, leave once; `state` tells the rest.
 */
export class Call {
  readonly state: Store<CallState>;
  readonly encrypted: boolean;
  readonly identity: string;
  private readonly me: CallMembershipIdentityParts;
  private readonly session: MatrixRTCSession;
  private keys: MatrixKeys | undefined;
  private transport: LiveKitTransport | undefined;
  private delegates = false;
  private own: Connection | undefined;
  private readonly others = new Map<string, Connection>();
  private readonly keylessSince = new Map<string, number>();
  private readonly peopleSeen = new Set<string>();
  private readonly samples = { good: 0, all: 0 };
  private cleanups: (() => void)[] = [];
  private watchdog: ReturnType<typeof setTimeout>[] = [];
  private attempts = 0;
  private over = false;
  private setupFailure: CallSetupError | undefined;
  private membershipFailure: string | undefined;
  private signalFailure: string | undefined;

  constructor(
    readonly client: MatrixClient,
    readonly room: MatrixRoom,
    private readonly prepared: Prepared,
    wants: { mic: boolean; camera: boolean },
  ) {
    const userId = client.getSafeUserId();
    const deviceId = client.getDeviceId()!;
    this.identity = `${userId}:${deviceId}`;
    this.me = { userId, deviceId, memberId: this.identity };
    this.encrypted = room.hasEncryptionStateEvent();
    this.session = client.matrixRTC.getRoomSession(room);
    this.state = new Store<CallState>({
      phase: "joining",
      scene: EMPTY,
      startedAt: undefined,
      mic: wants.mic,
      camera: wants.camera,
      sharing: false,
      hand: false,
      deviceTrouble: undefined,
      trouble: undefined,
      soundBlocked: false,
      lastSpeaker: undefined,
      quality: "unknown",
      route: undefined,
      ended: undefined,
    });
  }

  /** start joins. It never throws: what goes wrong shows in `state.trouble`. */
  async start(): Promise<void> {
    this.listen();
    this.refresh();
    if (this.encrypted && !isE2EESupported()) {
      this.fail({ path: "keys", code: "NO_FRAME_ENCRYPTION", fatal: true, details: {} });
      return;
    }
    if (this.encrypted) this.keys = new MatrixKeys(this.session);
    await this.connect();
  }

  /** retry starts over after a failure. */
  async retry(): Promise<void> {
    if (this.over) return;
    this.attempts = 0;
    await this.own?.stop();
    this.own = undefined;
    await this.connect();
  }

  /** leave ends the call: membership, media, devices. */
  async leave(reason: EndReason = "left", by?: string, text?: string): Promise<void> {
    if (this.over) return;
    this.over = true;
    this.clearWatchdog();
    for (const cleanup of this.cleanups) cleanup();
    this.cleanups = [];
    this.keys?.close();
    this.state.patch({
      phase: "ended",
      scene: EMPTY,
      trouble: undefined,
      ended: { reason, ...(by ? { by } : {}), ...(text ? { text } : {}) },
    });
    this.prepared.audio?.stop();
    this.prepared.video?.stop();
    const connections = [this.own, ...this.others.values()].filter((c) => c !== undefined);
    await Promise.all([
      reason === "left" || reason === "elsewhere" || reason === "signed-out"
        ? this.session.leaveRoomSession(5000).catch(() => false)
        : this.session.leaveRoomSession(500).catch(() => false),
      ...connections.map((c) => c.stop()),
    ]);
  }

  summary(): CallSummary {
    const s = this.state.value;
    const seconds = s.startedAt === undefined ? 0 : (this.endedAt - s.startedAt) / 1000;
    return {
      roomId: this.room.roomId,
      roomName: this.room.name,
      reason: s.ended?.reason ?? "left",
      ...(s.ended?.by ? { by: s.ended.by } : {}),
      ...(s.ended?.text ? { text: s.ended.text } : {}),
      seconds,
      people: [...this.peopleSeen],
      good: this.samples.all === 0 ? undefined : this.samples.good / this.samples.all,
    };
  }

  async setMic(on: boolean): Promise<void> {
    prefer({ mic: on });
    this.state.patch({ mic: on });
    try {
      if (!this.own?.connected) return;
      await this.own.room.localParticipant.setMicrophoneEnabled(on);
      this.clearDeviceTrouble("microphone");
    } catch (e) {
      this.state.patch({ mic: false });
      this.deviceFailed("microphone", e);
    } finally {
      this.refresh();
    }
  }

  async setCamera(on: boolean): Promise<void> {
    prefer({ camera: on });
    this.state.patch({ camera: on });
    try {
      if (!this.own?.connected) return;
      await this.own.room.localParticipant.setCameraEnabled(on);
      this.clearDeviceTrouble("camera");
    } catch (e) {
      this.state.patch({ camera: false });
      this.deviceFailed("camera", e);
    } finally {
      this.refresh();
    }
  }

  async setSharing(on: boolean): Promise<void> {
    if (!this.own?.connected) return;
    try {
      await this.own.room.localParticipant.setScreenShareEnabled(on, {
        audio: true,
        selfBrowserSurface: "include",
        surfaceSwitching: "include",
        systemAudio: "include",
      });
    } catch (e) {
      // Closing the browser's own dialog is an answer, not a failure.
      if (deviceProblem(e) !== "denied") this.deviceFailed("screen", e);
    } finally {
      this.refresh();
    }
  }

  async setHand(up: boolean): Promise<void> {
    const mine = this.session.memberships.find((m) => m.userId === this.me.userId && m.deviceId === this.me.deviceId);
    if (!mine?.eventId) return;
    this.state.patch({ hand: up });
    try {
      if (up) {
        await this.client.sendEvent(this.room.roomId, EventType.Reaction, {
          "m.relates_to": { rel_type: RelationType.Annotation, event_id: mine.eventId, key: HAND },
        });
      } else {
        for (const id of this.handEvents(mine.eventId, this.me.userId)) await this.client.redactEvent(this.room.roomId, id);
      }
    } catch {
      // The sync tells the truth a moment later.
    } finally {
      this.refresh();
    }
  }

  async useDevice(kind: "audioinput" | "videoinput" | "audiooutput", deviceId: string): Promise<void> {
    prefer({ [kind]: deviceId });
    const rooms = [this.own, ...(kind === "audiooutput" ? this.others.values() : [])];
    for (const c of rooms) await c?.room.switchActiveDevice(kind, deviceId).catch((e: unknown) => this.deviceFailed(kind === "videoinput" ? "camera" : "microphone", e));
  }

  /** allowSound is to be called from a click: browsers start sound only then. */
  async allowSound(): Promise<void> {
    for (const c of [this.own, ...this.others.values()]) await c?.room.startAudio().catch(() => undefined);
    this.refresh();
  }

  dismissDeviceTrouble(): void {
    this.state.patch({ deviceTrouble: undefined });
  }

  private endedAt = 0;

  // --- joining -----------------------------------------------------------

  private async connect(): Promise<void> {
    this.state.patch({ phase: this.state.value.startedAt === undefined ? "joining" : "reconnecting", trouble: undefined });
    this.setupFailure = undefined;
    this.membershipFailure = undefined;
    this.signalFailure = undefined;
    this.startWatchdog();
    try {
      this.transport ??= await discoverTransport(this.client);
      const service = this.transport.livekit_service_url;
      const [ticket, delegates] = await Promise.all([
        ticketForOwn(this.client, service, this.room.roomId, this.me.deviceId),
        canDelegateLeave(this.client, service),
      ]);
      if (this.over) return;
      this.delegates = delegates;
      this.joinSession(this.transport);
      const connection = new Connection(service, this.keys, {
        changed: this.refreshSoon,
        speakers: this.onSpeakers,
        keyless: this.onKeyless,
        ended: (reason) => this.onOwnEnded(connection, reason),
      });
      this.own = connection;
      await connection.start(ticket);
      if (this.over || this.own !== connection) return;
      await this.onConnected(connection);
    } catch (e) {
      if (this.over) return;
      if (e instanceof CallSetupError) this.setupFailure = e;
      else this.signalFailure = this.own?.error ?? (e instanceof Error ? e.name : String(e));
      const fatal = e instanceof CallSetupError && isFinal(e.code);
      if (fatal) {
        this.clearWatchdog();
        void this.look();
      } else {
        this.again();
      }
    }
  }

  private joinSession(transport: LiveKitTransport): void {
    if (this.session.isJoined()) return;
    const others = this.session.memberships.length > 0;
    this.session.joinRTCSession(
      this.me,
      [],
      // The alias is for clients that still read it from the membership.
      { type: "livekit", livekit_service_url: transport.livekit_service_url, livekit_alias: this.room.roomId },
      {
        ...(others ? {} : { notificationType: "notification" as const }),
        callIntent: "video",
        manageMediaKeys: this.encrypted,
        delayedLeaveEventDelayMs: this.delegates ? DELEGATED_DELAY_MS : 18_000,
        delayedLeaveEventRestartMs: this.delegates ? 300_000 : 4_000,
        networkErrorRetryMs: 1_000,
        maximumNetworkErrorRetryCount: 30,
      },
    );
    void this.delegate();
  }

  /** delegate hands the pending leave to the media service whenever there is a new one. */
  private delegate = async (): Promise<void> => {
    const delayId = this.session.delayId;
    if (!this.delegates || !this.transport || delayId === undefined || delayId === null || this.over) return;
    try {
      await ticketForOwn(this.client, this.transport.livekit_service_url, this.room.roomId, this.me.deviceId, delayId);
    } catch (e) {
      console.warn("the leave could not be delegated", e instanceof Error ? e.message : e);
    }
  };

  private async onConnected(connection: Connection): Promise<void> {
    this.attempts = 0;
    this.clearWatchdog();
    this.signalFailure = undefined;
    this.state.patch({
      phase: "connected",
      trouble: this.membershipFailure === undefined ? undefined : this.state.value.trouble,
      startedAt: this.state.value.startedAt ?? Date.now(),
    });
    this.refresh();
    await this.publish(connection);
    this.refresh();
    const ice = await connection.ice();
    this.state.patch({ route: routeOf(ice) });
  }

  private async publish(connection: Connection): Promise<void> {
    const local = connection.room.localParticipant;
    const { audio, video } = this.prepared;
    delete this.prepared.audio;
    delete this.prepared.video;
    const one = async (kind: "microphone" | "camera", wants: boolean, ready: LocalAudioTrack | LocalVideoTrack | undefined) => {
      if (!wants) {
        ready?.stop();
        return;
      }
      try {
        if (ready && ready.mediaStreamTrack.readyState === "live") {
          await local.publishTrack(ready, { source: kind === "camera" ? Track.Source.Camera : Track.Source.Microphone });
        } else if (kind === "camera") await local.setCameraEnabled(true);
        else await local.setMicrophoneEnabled(true);
      } catch (e) {
        this.state.patch(kind === "camera" ? { camera: false } : { mic: false });
        this.deviceFailed(kind, e);
      }
    };
    // The person may have changed their mind while we were connecting.
    await one("microphone", this.state.value.mic, audio);
    await one("camera", this.state.value.camera, video);
  }

  /** again tries once more after a while, and less often the longer it lasts. */
  private again(): void {
    if (this.over) return;
    const wait = Math.min(10_000, 500 * 2 ** this.attempts++);
    const timer = setTimeout(() => {
      if (this.over) return;
      void this.own?.stop();
      this.own = undefined;
      void this.connectQuietly();
    }, wait);
    this.cleanups.push(() => clearTimeout(timer));
  }

  /** connectQuietly is connect without taking back what was already said. */
  private async connectQuietly(): Promise<void> {
    const said = this.state.value.trouble;
    const connecting = this.connect();
    if (said) this.state.patch({ trouble: said });
    await connecting;
  }

  private onOwnEnded(connection: Connection, reason: DisconnectReason | undefined): void {
    if (this.over || connection !== this.own) return;
    switch (reason) {
      case DisconnectReason.CLIENT_INITIATED:
        return;
      case DisconnectReason.DUPLICATE_IDENTITY:
        void this.leave("elsewhere");
        return;
      case DisconnectReason.PARTICIPANT_REMOVED:
        // Sync will say in a moment whether we were removed from the room.
        if (this.room.getMyMembership() !== KnownMembership.Join) return this.onMyMembership();
        break;
    }
    if (this.state.value.startedAt === undefined) return; // start() reports it
    this.signalFailure = reason === undefined ? "closed" : DisconnectReason[reason];
    this.state.patch({ phase: "reconnecting", mic: this.state.value.mic, camera: this.state.value.camera });
    this.startWatchdog();
    this.again();
  }

  // --- what others do ------------------------------------------------------

  private listen(): void {
    const { session, room } = this;
    const on = (target: { on: Function; off: Function }, event: string, f: Function) => {
      target.on(event, f);
      this.cleanups.push(() => target.off(event, f));
    };
    on(session, MatrixRTCSessionEvent.MembershipsChanged, this.onMemberships);
    on(session, MatrixRTCSessionEvent.EncryptionKeyChanged, (_key: unknown, _index: unknown, _who: unknown, identity: string) => this.keylessSince.delete(identity));
    on(session, MatrixRTCSessionEvent.MembershipManagerError, this.onMembershipError);
    on(session, MembershipManagerEvent.StatusChanged, this.refreshSoon);
    on(session, MembershipManagerEvent.DelayIdChanged, this.delegate);
    on(room, MatrixRoomEvent.MyMembership, () => this.onMyMembership());
    on(room, MatrixRoomEvent.Timeline, this.refreshSoon);
    on(room, MatrixRoomEvent.Redaction, this.refreshSoon);
    on(room.currentState, RoomStateEvent.Members, this.refreshSoon);
    const ticker = setInterval(this.tick, 2000);
    this.cleanups.push(() => clearInterval(ticker));
    this.cleanups.push(() => (this.endedAt = Date.now()));
    this.onMemberships();
  }

  private onMemberships = (): void => {
    for (const m of this.session.memberships) this.peopleSeen.add(m.userId);
    this.peopleSeen.delete(this.me.userId);
    this.connectOthers();
    this.refreshSoon();
  };

  private onMembershipError = (e: unknown): void => {
    // Without a membership nobody shows us, however well media flows.
    this.membershipFailure = e instanceof Error ? e.message : String(e);
    this.fail({ path: "membership", code: "MEMBERSHIP_FAILED", fatal: true, details: { membership: this.membershipFailure } });
  };

  private onMyMembership(): void {
    const m = this.room.getMyMembership();
    if (m === KnownMembership.Join || this.over) return;
    const ev = this.room.getMember(this.me.userId)?.events.member;
    const by = ev?.getSender();
    const text = (ev?.getContent() as { reason?: string } | undefined)?.reason;
    const byOther = by !== undefined && by !== this.me.userId;
    void this.leave(m === KnownMembership.Ban ? "banned" : byOther ? "removed" : "left", byOther ? nameOf(this.room, by) : undefined, text);
  }

  /** connectOthers keeps one listening connection for each media server that others publish on. */
  private connectOthers(): void {
    if (this.over) return;
    const wantedServices = new Set<string>();
    for (const m of this.members()) {
      if (m.service !== undefined && m.identity !== this.identity) wantedServices.add(m.service);
    }
    if (this.transport) wantedServices.delete(this.transport.livekit_service_url);
    else return; // our own is not known yet; it may be the same one
    for (const [service, c] of this.others) {
      if (wantedServices.has(service)) continue;
      this.others.delete(service);
      void c.stop();
    }
    for (const service of wantedServices) if (!this.others.has(service)) this.listenTo(service, 0);
  }

  private listenTo(service: string, attempt: number): void {
    const again = () => {
      if (this.over || this.others.get(service) !== c) return;
      this.others.delete(service);
      void c.stop();
      const timer = setTimeout(() => {
        if (!this.over && !this.others.has(service)) this.listenTo(service, attempt + 1);
      }, Math.min(15_000, 1000 * 2 ** attempt));
      this.cleanups.push(() => clearTimeout(timer));
    };
    const c: Connection = new Connection(service, this.keys, {
      changed: this.refreshSoon,
      speakers: this.onSpeakers,
      keyless: this.onKeyless,
      ended: again,
    });
    this.others.set(service, c);
    ticketForOther(this.client, service, this.room.roomId, this.me)
      .then((t) => c.start(t))
      .then(this.refreshSoon, again);
  }

  private onSpeakers = (identities: string[]): void => {
    const other = identities.find((i) => i !== this.identity);
    if (other !== undefined) this.state.patch({ lastSpeaker: other });
  };

  private onKeyless = (identity: string): void => {
    this.keylessSince.set(identity, Date.now());
  };

  private tick = (): void => {
    const q = this.state.value.quality;
    if (this.state.value.phase === "connected" || this.state.value.phase === "reconnecting") {
      this.samples.all++;
      if (this.state.value.phase === "connected" && q !== "poor" && q !== "lost") this.samples.good++;
    }
    this.connectOthers();
    this.refresh();
    // What was wrong a while ago need not be what is wrong now.
    if (this.state.value.trouble && !this.own?.connected && Date.now() - this.lookedAt > LOOK_AGAIN_MS) void this.look();
  };

  // --- what is shown -------------------------------------------------------

  private members(): Member[] {
    const list = this.session.memberships;
    const oldest = list[0];
    return list.map((m) => toMember(m, oldest ?? m));
  }

  private refreshSoon = coalesce(() => this.refresh());

  private refresh(): void {
    if (this.over) return;
    const members = this.members();
    if (!members.some((m) => m.identity === this.identity)) {
      members.push({ ...this.me, identity: this.identity, service: undefined, eventId: undefined, joinedAt: Number.MAX_SAFE_INTEGER });
    }
    const now = Date.now();
    const hands = new Map(members.map((m) => [m.identity, m.eventId !== undefined && this.handEvents(m.eventId, m.userId).length > 0]));
    const scene = buildScene<Track>(members, {
      ownIdentity: this.identity,
      encrypted: this.encrypted,
      person: (identity, service) => this.find(identity, service),
      name: (userId) => nameOf(this.room, userId),
      hand: (m) => hands.get(m.identity) ?? false,
      keyless: (identity) => now - (this.keylessSince.get(identity) ?? 0) < KEYLESS_FOR_MS,
    });
    const own = this.own;
    const local = own?.room.localParticipant;
    const s = this.state.value;
    let phase = s.phase;
    if (own && phase === "connected" && own.reconnecting) {
      phase = "reconnecting";
      this.startWatchdog();
    } else if (own && phase === "reconnecting" && own.connected) {
      phase = "connected";
      this.clearWatchdog();
    }
    this.state.patch({
      scene,
      phase,
      sharing: local?.isScreenShareEnabled ?? false,
      hand: hands.get(this.identity) ?? false,
      soundBlocked: own?.connected ? !own.room.canPlaybackAudio : false,
      quality: (local?.connectionQuality as Quality | undefined) ?? "unknown",
      ...(phase === "connected" && s.phase === "reconnecting" ? { trouble: undefined } : {}),
    });
  }

  private find(identity: string, service: string | undefined): Person<Track> | undefined {
    if (identity === this.identity) return this.own?.connected || this.own?.reconnecting ? this.own.person(identity) : this.preview();
    const other = service !== undefined && service !== this.transport?.livekit_service_url ? this.others.get(service) : this.own;
    return other?.person(identity);
  }

  /** preview shows oneself from the lobby's tracks until there is a connection. */
  private preview(): Person<Track> {
    const { audio, video } = this.prepared;
    const s = this.state.value;
    return {
      identity: this.identity,
      local: true,
      mic: { track: audio, muted: !s.mic, encrypted: true },
      camera: { track: video, muted: !s.camera, encrypted: true },
      screen: undefined,
      screenAudio: undefined,
      speaking: false,
      level: 0,
      quality: "unknown",
    };
  }

  private handEvents(eventId: string, sender: string): string[] {
    const relations = this.room.relations.getChildEventsForEvent(eventId, RelationType.Annotation, EventType.Reaction);
    return (relations?.getRelations() ?? [])
      .filter((ev) => ev.getSender() === sender && !ev.isRedacted() && (ev.getContent() as { "m.relates_to"?: { key?: string } })["m.relates_to"]?.key === HAND)
      .map((ev) => ev.getId()!);
  }

  // --- trouble -------------------------------------------------------------

  private startWatchdog(): void {
    if (this.watchdog.length > 0) return;
    let evidence: Promise<Trouble | undefined> | undefined;
    this.watchdog = [
      setTimeout(() => (evidence = this.examine()), LOOK_AFTER_MS),
      setTimeout(() => {
        void evidence?.then((t) => {
          if (t && this.watchdog.length > 0 && !this.over) this.state.patch({ trouble: t });
        });
      }, TROUBLE_AFTER_MS),
    ];
  }

  private clearWatchdog(): void {
    for (const t of this.watchdog) clearTimeout(t);
    this.watchdog = [];
  }

  private lookedAt = 0;

  private async look(): Promise<void> {
    this.lookedAt = Date.now();
    const t = this.encrypted && !this.keys ? undefined : await this.examine();
    if (t && !this.over && !this.own?.connected) this.state.patch({ trouble: t });
  }

  /** examine collects what can be known about a missing connection. */
  private async examine(): Promise<Trouble | undefined> {
    const own = this.own;
    const [serverReachable, relays, ice] = await Promise.all([
      fetch(`${this.client.baseUrl}/_matrix/client/versions`, { signal: AbortSignal.timeout(3000) }).then(
        (r) => r.ok,
        () => false,
      ),
      checkRelays(this.client, 3500),
      own?.ice(),
    ]);
    if (this.own?.connected) return undefined;
    return diagnose({
      serverReachable,
      ...(this.setupFailure ? { setup: this.setupFailure } : {}),
      ...(this.membershipFailure ? { membership: this.membershipFailure } : {}),
      // While livekit-client rebuilds a connection there are no addresses yet: that is not their fault.
      signalOpen: (this.own?.signalOpen ?? false) && !(this.own?.reconnecting && !ice?.remote.length),
      ...(this.signalFailure ? { signalError: this.signalFailure } : {}),
      ...(ice ? { ice } : {}),
      relays,
    });
  }

  private fail(t: Trouble): void {
    this.clearWatchdog();
    this.state.patch({ trouble: t });
  }

  private deviceFailed(path: Extract<Path, "microphone" | "camera" | "screen">, e: unknown): void {
    const problem = deviceProblem(e);
    const details = { problem, error: e instanceof Error ? `${e.name}: ${e.message}` : String(e) };
    this.state.patch({ deviceTrouble: { path, code: `${path.toUpperCase()}_${problem.toUpperCase()}`, fatal: false, details } });
  }

  private clearDeviceTrouble(path: Path): void {
    if (this.state.value.deviceTrouble?.path === path) this.state.patch({ deviceTrouble: undefined });
  }
}

function toMember(m: CallMembership, oldest: CallMembership): Member {
  const t = m.getTransport(oldest);
  return {
    userId: m.userId,
    deviceId: m.deviceId,
    identity: m.rtcBackendIdentity,
    service: typeof t?.livekit_service_url === "string" ? t.livekit_service_url : undefined,
    eventId: m.eventId,
    joinedAt: m.createdTs(),
  };
}
