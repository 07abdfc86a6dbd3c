import {
  AudioPresets,
  ConnectionError,
  ConnectionErrorReason,
  ConnectionState,
  DisconnectReason,
  ParticipantKind,
  Room,
  RoomEvent,
  ScreenSharePresets,
  Track,
  VideoPresets,
  type BaseKeyProvider,
  type Participant,
  type TrackPublication,
} from "livekit-client";
import E2EEWorker from "livekit-client/e2ee-worker?worker";
import { cameraPreset, wanted } from "./devices.ts";
import { phoneOf, type Media, type Person, type Quality } from "./tiles.ts";
import { readIce, type IceReport } from "./trouble.ts";
import type { Ticket } from "./transport.ts";

/** What a connection tells its owner. */
export interface ConnectionEvents {
  /** Anything that may change what is shown. */
  changed: () => void;
  speakers: (identities: string[]) => void;
  keyless: (identity: string) => void;
  /** The connection ended and will not come back by itself. */
  ended: (reason: DisconnectReason | undefined) => void;
}

/**
 * One connection to one media server: the one we publish on, or another one
 * that somebody else publishes on and where we only listen. Start it once;
 * stop it at any time, more than once.
 */
export class Connection {
  readonly room: Room;
  signalOpen = false;
  error: string | undefined;
  private worker: Worker | undefined;
  private stopped = false;

  constructor(
    readonly service: string,
    keys: BaseKeyProvider | undefined,
    private events: ConnectionEvents,
  ) {
    // A worker gets confused by streams of more than one room: one for each.
    this.worker = keys ? new E2EEWorker() : undefined;
    this.room = new Room({
      adaptiveStream: true,
      dynacast: true,
      stopLocalTrackOnUnpublish: true,
      audioCaptureDefaults: {
        echoCancellation: true,
        noiseSuppression: true,
        autoGainControl: true,
        ...device("audioinput"),
      },
      videoCaptureDefaults: { resolution: cameraPreset().resolution, ...device("videoinput") },
      publishDefaults: {
        simulcast: true,
        videoCodec: "vp8",
        videoEncoding: cameraPreset().encoding,
        videoSimulcastLayers: [VideoPresets.h180, VideoPresets.h360],
        screenShareEncoding: ScreenSharePresets.h1080fps15.encoding,
        audioPreset: AudioPresets.music,
        dtx: true,
        // Redundant audio would have to be stripped on the way for some
        // receivers, which nobody can do with encrypted frames.
        red: false,
        stopMicTrackOnMute: false,
      },
      ...(device("audiooutput").deviceId ? { audioOutput: { deviceId: device("audiooutput").deviceId! } } : {}),
      ...(keys && this.worker ? { e2ee: { keyProvider: keys, worker: this.worker } } : {}),
    });
    this.listen();
  }

  get connected(): boolean {
    return this.room.state === ConnectionState.Connected;
  }

  get reconnecting(): boolean {
    return this.room.state === ConnectionState.Reconnecting || this.room.state === ConnectionState.SignalReconnecting;
  }

  /** start connects. It throws what livekit-client throws; `error` then holds it in short. */
  async start(ticket: Ticket): Promise<void> {
    if (this.worker) await this.room.setE2EEEnabled(true);
    try {
      await this.room.connect(ticket.url, ticket.jwt);
    } catch (e) {
      this.error = describeConnectError(e);
      throw e;
    }
  }

  async stop(): Promise<void> {
    if (this.stopped) return;
    this.stopped = true;
    this.room.removeAllListeners();
    await this.room.disconnect().catch(() => undefined);
    this.worker?.terminate();
  }

  /** ice reports the paths that the media connection tries or uses. */
  async ice(): Promise<IceReport | undefined> {
    const pc = this.room.engine?.pcManager?.publisher;
    const stats = await pc?.getStats()?.catch(() => undefined);
    if (!pc || !stats) return undefined;
    const rows: Record<string, unknown>[] = [];
    stats.forEach((s: Record<string, unknown>) => rows.push(s));
    return readIce(rows, pc.getICEConnectionState());
  }

  /** person looks a participant up by identity. */
  person(identity: string): Person<Track> | undefined {
    const local = this.room.localParticipant;
    if (local.identity === identity && this.room.state !== ConnectionState.Disconnected) return personOf(local);
    const p = this.room.remoteParticipants.get(identity);
    return p && personOf(p);
  }

  private listen(): void {
    const { changed, keyless } = this.events;
    for (const ev of [
      RoomEvent.Connected,
      RoomEvent.ConnectionStateChanged,
      RoomEvent.ParticipantConnected,
      RoomEvent.ParticipantDisconnected,
      RoomEvent.TrackSubscribed,
      RoomEvent.TrackUnsubscribed,
      RoomEvent.TrackPublished,
      RoomEvent.TrackUnpublished,
      RoomEvent.LocalTrackPublished,
      RoomEvent.LocalTrackUnpublished,
      RoomEvent.TrackMuted,
      RoomEvent.TrackUnmuted,
      RoomEvent.TrackStreamStateChanged,
      RoomEvent.ConnectionQualityChanged,
      RoomEvent.ParticipantEncryptionStatusChanged,
      RoomEvent.ParticipantAttributesChanged,
      RoomEvent.AudioPlaybackStatusChanged,
      RoomEvent.ActiveDeviceChanged,
      RoomEvent.MediaDevicesError,
    ] as const) {
      this.room.on(ev, changed);
    }
    this.room.on(RoomEvent.SignalConnected, () => {
      this.signalOpen = true;
      changed();
    });
    this.room.on(RoomEvent.ActiveSpeakersChanged, (speakers) => {
      this.events.speakers(speakers.map((p) => p.identity));
      changed();
    });
    this.room.on(RoomEvent.EncryptionError, (_e, p) => {
      if (p) keyless(p.identity);
      changed();
    });
    this.room.on(RoomEvent.Disconnected, (reason) => {
      changed();
      if (!this.stopped) this.events.ended(reason);
    });
  }
}

function device(kind: "audioinput" | "videoinput" | "audiooutput"): { deviceId?: string } {
  const id = wanted(kind);
  return id === undefined ? {} : { deviceId: id };
}

/** personOf reads a LiveKit participant. */
export function personOf(p: Participant): Person<Track> {
  return {
    identity: p.identity,
    local: p.isLocal,
    mic: media(p.getTrackPublication(Track.Source.Microphone)),
    camera: media(p.getTrackPublication(Track.Source.Camera)),
    screen: media(p.getTrackPublication(Track.Source.ScreenShare)),
    screenAudio: media(p.getTrackPublication(Track.Source.ScreenShareAudio)),
    speaking: p.isSpeaking,
    level: p.audioLevel,
    quality: p.connectionQuality as Quality,
    phone: phoneOf(p.kind === ParticipantKind.SIP, p.attributes),
  };
}

function media(pub: TrackPublication | undefined): Media<Track> | undefined {
  return pub && { track: pub.track, muted: pub.isMuted, encrypted: pub.isEncrypted };
}

/** describeConnectError puts a failed connection into a few words for the details. */
export function describeConnectError(e: unknown): string {
  if (e instanceof ConnectionError) {
    const reason = ConnectionErrorReason[e.reason] ?? String(e.reason);
    return e.status === undefined ? reason : `${reason} ${String(e.status)}`;
  }
  return e instanceof Error ? e.name : "unknown";
}
