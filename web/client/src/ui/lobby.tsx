import { createLocalAudioTrack, createLocalVideoTrack, type LocalAudioTrack, type LocalVideoTrack } from "livekit-client";
import { createClient, type MatrixClient, type Room } from "matrix-js-sdk";
import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { app, enter, findRoom, startCall, useApp, useMatrix, waitForRoom } from "../app.ts";
import { cameraPreset, deviceProblem, devices, prefer, preferences, refreshDevices, wanted, type DeviceProblem } from "../call/devices.ts";
import { checkRelays } from "../call/netcheck.ts";
import { useStore } from "../lib/store.ts";
import { go, type Route } from "../lib/router.ts";
import { pingServer } from "../matrix/config.ts";
import { callMembers, nameOf } from "../matrix/rooms.ts";
import { enterAsGuest } from "../matrix/session.ts";
import { t } from "../strings/en.ts";
import { Door, useSubmit } from "./door.tsx";
import { Icon } from "./icons.tsx";
import { Button, Faces, Field, IconButton } from "./parts.tsx";

type CallRoute = Extract<Route, { at: "call" }>;

/** CallEntry leads from a link to the call's lobby: signed in, as a guest, or through the door. */
export function CallEntry({ route }: { route: CallRoute }): JSX.Element {
  const { phase } = useApp();
  const [signIn, setSignIn] = useState(false);
  // Becoming a guest is part of joining: the lobby stays until the call is there.
  const [stranger] = useState(phase !== "in" && route.guest);
  if (phase === "in" && (!stranger || signIn)) return <MemberLobby route={route} />;
  if (!route.guest || signIn) return <Door />;
  return <GuestLobby route={route} onSignIn={() => setSignIn(true)} />;
}

function MemberLobby({ route }: { route: CallRoute }): JSX.Element {
  const client = useMatrix();
  const room = findRoom(client, route.room);
  const joined = room?.getMyMembership() === "join";
  const people = room && joined ? callMembers(client, room) : [];
  const summary = useSummary(client, joined ? undefined : route.room, route.via);
  const join = async (media: LobbyMedia) => {
    let target: Room | undefined = joined ? room : undefined;
    if (!target) {
      const r = await client.joinRoom(room?.roomId ?? route.room, { viaServers: route.via });
      target = await waitForRoom(client, r.roomId);
    }
    go({ at: "call", room: target.roomId, via: [], guest: false }, true);
    await startCall(target, media.take(), media.wants);
  };
  return (
    <Lobby
      title={room?.name ?? summary?.name ?? t.lobby.guestTitle}
      back={() => go(room ? { at: "room", room: room.roomId, via: [] } : { at: "home" })}
      inside={people.map((id) => ({ id, name: nameOf(room, id) }))}
      known={joined}
      encrypted={joined ? room!.hasEncryptionStateEvent() : summary?.encrypted}
      join={join}
      note={joined || room?.getMyMembership() === "invite" ? undefined : t.room.notIn}
    />
  );
}

/** useSummary asks what a room is called and whether it is encrypted before one is in it (MSC3266). */
export function useSummary(client: MatrixClient, room: string | undefined, via: string[]): { name: string | undefined; encrypted: boolean } | undefined {
  const [summary, setSummary] = useState<{ name: string | undefined; encrypted: boolean }>();
  useEffect(() => {
    if (room === undefined) return;
    client.getRoomSummary(room, via).then(
      (s) => setSummary({ name: s.name, encrypted: s["im.nheko.summary.encryption"] !== undefined }),
      () => undefined, // Not every server tells, and not about every room.
    );
  }, [client, room]);
  return summary;
}

function GuestLobby({ route, onSignIn }: { route: CallRoute; onSignIn: () => void }): JSX.Element {
  const [name, setName] = useState("");
  const anonymous = useMemo(() => createClient({ baseUrl: app.value.config.baseUrl }), []);
  const summary = useSummary(anonymous, route.room, route.via);
  const join = async (media: LobbyMedia) => {
    const client = app.value.client ?? (await enter(await enterAsGuest(app.value.config, name)));
    const r = await client.joinRoom(route.room, { viaServers: route.via });
    const room = await waitForRoom(client, r.roomId);
    await startCall(room, media.take(), media.wants);
  };
  return (
    <Lobby title={summary?.name ?? t.lobby.guestTitle} inside={[]} known={false} encrypted={summary?.encrypted} join={join} note={t.lobby.asGuest} ready={name.trim() !== ""} onSignIn={onSignIn}>
      <Field label={t.lobby.name} hint={t.lobby.nameHint} value={name} onValue={setName} autoComplete="name" maxLength={80} required testId="guest-name" />
    </Lobby>
  );
}

/** The lobby's open microphone and camera, to be handed to the call. */
interface LobbyMedia {
  wants: { mic: boolean; camera: boolean };
  take: () => { audio?: LocalAudioTrack; video?: LocalVideoTrack };
}

interface LobbyProps {
  title: string;
  back?: () => void;
  inside: { id: string; name: string }[];
  known: boolean;
  encrypted: boolean | undefined;
  join: (media: LobbyMedia) => Promise<void>;
  note?: string | undefined;
  ready?: boolean;
  onSignIn?: () => void;
  children?: JSX.Element;
}

function Lobby({ title, back, inside, known, encrypted, join, note, ready = true, onSignIn, children }: LobbyProps): JSX.Element {
  const prefs = useStore(preferences);
  const lists = useStore(devices);
  const mic = useTrack("audioinput", prefs.mic, prefs.audioinput);
  const camera = useTrack("videoinput", prefs.camera, prefs.videoinput);
  const video = useRef<HTMLVideoElement>(null);
  useEffect(() => {
    const track = camera.track;
    const el = video.current;
    if (!track || !el) return;
    track.attach(el);
    return () => void track.detach(el);
  }, [camera.track]);
  useEffect(() => {
    document.title = `${title} · ${t.app}`;
  }, [title]);
  const { busy, error, submit } = useSubmit(() =>
    join({
      wants: { mic: prefs.mic && !mic.problem, camera: prefs.camera && !camera.problem },
      take: () => ({ ...pick("audio", mic.take() as LocalAudioTrack | undefined), ...pick("video", camera.take() as LocalVideoTrack | undefined) }),
    }),
  );
  return (
    <main class="lobby">
      <form class="lobby-grid" onSubmit={submit}>
        <section class="preview-side">
          <div class="preview" data-testid="preview">
            {camera.track ? (
              <video ref={video} class="mirror" autoPlay playsInline muted aria-label={t.lobby.preview} />
            ) : (
              <div class="preview-off">
                <Icon name="cameraOff" size={40} />
                <span>{camera.problem ? t.device[camera.problem](t.device.camera) : t.lobby.cameraOff}</span>
              </div>
            )}
            <div class="preview-controls">
              <IconButton icon={prefs.mic ? "mic" : "micOff"} class={`round ${prefs.mic ? "" : "off"}`} label={prefs.mic ? t.lobby.mute : t.lobby.unmute} aria-pressed={!prefs.mic} onClick={() => prefer({ mic: !prefs.mic })} data-testid="lobby-mic" />
              <IconButton icon={prefs.camera ? "camera" : "cameraOff"} class={`round ${prefs.camera ? "" : "off"}`} label={prefs.camera ? t.lobby.cameraOffDo : t.lobby.cameraOn} aria-pressed={!prefs.camera} onClick={() => prefer({ camera: !prefs.camera })} data-testid="lobby-camera" />
            </div>
          </div>
          <Level track={mic.track as LocalAudioTrack | undefined} problem={mic.problem} on={prefs.mic} />
        </section>
        <section class="lobby-side">
          {back && (
            <Button kind="ghost" icon="back" class="back" onClick={back}>
              {t.back}
            </Button>
          )}
          <h1>{title}</h1>
          {known && (
            <p class="inside" data-testid="lobby-inside">
              {inside.length > 0 ? (
                <>
                  <Faces people={inside} max={4} size={28} /> {t.lobby.inside(inside.map((p) => p.name))}
                </>
              ) : (
                t.lobby.nobody
              )}
            </p>
          )}
          {encrypted !== undefined && (
            <p class={`fact ${encrypted ? "live" : ""}`} data-testid="lobby-encrypted" data-encrypted={encrypted}>
              <Icon name={encrypted ? "lock" : "unlock"} size={18} /> {encrypted ? t.lobby.encrypted : t.lobby.notEncrypted}
            </p>
          )}
          {note && <p class="muted">{note}</p>}
          {children}
          <p class="error form-error" role="alert" data-testid="lobby-error">
            {error}
          </p>
          <Button type="submit" kind="primary" icon="phone" class="wide big" busy={busy} disabled={!ready} data-testid="lobby-join">
            {busy ? t.lobby.joining : t.lobby.join}
          </Button>
          {onSignIn && (
            <Button kind="ghost" class="wide" onClick={onSignIn} data-testid="lobby-sign-in">
              {t.lobby.haveAccount}
            </Button>
          )}
          <details class="pickers" open={matchMedia("(min-width: 761px)").matches && (lists.audioinput.length > 1 || lists.videoinput.length > 1)}>
            <summary>{t.call.settings}</summary>
            <Pickers />
          </details>
          <NetworkCheck />
        </section>
      </form>
    </main>
  );
}

function pick<K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } {
  return (value === undefined ? {} : { [key]: value }) as { [P in K]?: V };
}

type LocalTrack = LocalAudioTrack | LocalVideoTrack;

/** useTrack holds a device open while it is wanted, and lets go of it unless it was taken. */
function useTrack(kind: "audioinput" | "videoinput", on: boolean, deviceId: string | undefined): { track: LocalTrack | undefined; problem: DeviceProblem | undefined; take: () => LocalTrack | undefined } {
  const [track, setTrack] = useState<LocalTrack>();
  const [problem, setProblem] = useState<DeviceProblem>();
  const taken = useRef(false);
  useEffect(() => {
    if (!on) return;
    let opened: LocalTrack | undefined;
    let gone = false;
    setProblem(undefined);
    const id = wanted(kind);
    const device = id === undefined ? {} : { deviceId: id };
    const opening: Promise<LocalTrack> =
      kind === "audioinput"
        ? createLocalAudioTrack({ echoCancellation: true, noiseSuppression: true, autoGainControl: true, ...device })
        : createLocalVideoTrack({ resolution: cameraPreset().resolution, ...device });
    opening
      .then((tr) => {
        if (gone) return tr.stop();
        opened = tr;
        setTrack(tr);
        void refreshDevices();
      })
      .catch((e: unknown) => {
        if (!gone) setProblem(deviceProblem(e));
      });
    return () => {
      gone = true;
      setTrack(undefined);
      if (!taken.current) opened?.stop();
    };
  }, [kind, on, deviceId]);
  return {
    track,
    problem,
    take: () => {
      taken.current = true;
      return track;
    },
  };
}

/** Level is the microphone's level, alive. */
function Level({ track, problem, on }: { track: LocalAudioTrack | undefined; problem: DeviceProblem | undefined; on: boolean }): JSX.Element {
  const meter = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!track) return;
    const context = new AudioContext();
    const source = context.createMediaStreamSource(new MediaStream([track.mediaStreamTrack]));
    const analyser = context.createAnalyser();
    analyser.fftSize = 512;
    source.connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    let frame = 0;
    let shown = 0;
    const draw = () => {
      analyser.getFloatTimeDomainData(samples);
      let sum = 0;
      for (const s of samples) sum += s * s;
      const db = 10 * Math.log10(sum / samples.length + 1e-9);
      const level = Math.min(1, Math.max(0, (db + 60) / 50));
      shown = Math.max(level, shown * 0.9);
      meter.current?.style.setProperty("--level", shown.toFixed(3));
      meter.current?.setAttribute("data-level", shown.toFixed(2));
      frame = requestAnimationFrame(draw);
    };
    draw();
    return () => {
      cancelAnimationFrame(frame);
      source.disconnect();
      void context.close();
    };
  }, [track]);
  if (problem) {
    return (
      <p class="error" role="alert">
        {t.device[problem](t.device.microphone)}
      </p>
    );
  }
  return (
    <div class={`level ${on && track ? "" : "off"}`} ref={meter} role="img" aria-label={on ? t.lobby.level : t.lobby.micOff} data-testid="level">
      <Icon name={on ? "mic" : "micOff"} size={18} />
      <span class="level-bar" />
    </div>
  );
}

/** Pickers choose devices. In a call `onPick` switches at once. */
export function Pickers({ onPick }: { onPick?: (kind: "audioinput" | "videoinput" | "audiooutput", id: string) => void }): JSX.Element {
  const lists = useStore(devices);
  const prefs = useStore(preferences);
  const one = (kind: "audioinput" | "videoinput" | "audiooutput", label: string) => (
    <label class="picker">
      <span>{label}</span>
      <select
        value={lists[kind].some((d) => d.deviceId === prefs[kind]) ? prefs[kind] : ""}
        data-testid={`pick-${kind}`}
        onChange={(e) => {
          const id = e.currentTarget.value;
          prefer({ [kind]: id === "" ? undefined : id });
          onPick?.(kind, id === "" ? "default" : id);
        }}
      >
        <option value="">{t.lobby.defaultDevice}</option>
        {lists[kind]
          .filter((d) => d.deviceId !== "default")
          .map((d, i) => (
            <option key={d.deviceId} value={d.deviceId}>
              {d.label || `${label} ${i + 1}`}
            </option>
          ))}
      </select>
    </label>
  );
  return (
    <div class="picker-list">
      {one("audioinput", t.lobby.microphone)}
      {one("videoinput", t.lobby.camera)}
      {(lists.audiooutput.length > 0 || "setSinkId" in HTMLMediaElement.prototype) && one("audiooutput", t.lobby.speaker)}
    </div>
  );
}

/** NetworkCheck runs by itself and says in words what it found. */
function NetworkCheck(): JSX.Element {
  const { client, config } = useApp();
  const [said, setSaid] = useState<{ text: string; state: "busy" | "good" | "fair" | "bad" }>({ text: t.lobby.checking, state: "busy" });
  useEffect(() => {
    let gone = false;
    const run = async () => {
      const [ms, relays] = await Promise.all([pingServer(config), client ? checkRelays(client) : undefined]);
      if (gone) return;
      if (ms === undefined) setSaid({ text: t.lobby.checkDown, state: "bad" });
      else if (!relays) setSaid({ text: t.lobby.checkServer(ms), state: "good" });
      else if (relays.udp === "untested") setSaid({ text: t.lobby.checkNoRelay(ms), state: "good" });
      else if (relays.udp === "ok") setSaid({ text: t.lobby.checkOk(ms), state: "good" });
      else if (relays.tcp === "ok" || relays.tls === "ok") setSaid({ text: t.lobby.checkTcp, state: "fair" });
      else setSaid({ text: t.lobby.checkBad, state: "bad" });
    };
    void run();
    return () => {
      gone = true;
    };
  }, [client]);
  return (
    <p class={`check ${said.state}`} role="status" data-testid="network-check" data-state={said.state}>
      <Icon name={said.state === "good" ? "check" : said.state === "busy" ? "settings" : "warn"} size={16} /> {said.text}
    </p>
  );
}

