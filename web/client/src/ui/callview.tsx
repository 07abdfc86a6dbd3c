import type { Track } from "livekit-client";
import type { ComponentChildren, JSX, RefObject } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { useMatrix } from "../app.ts";
import type { Call } from "../call/call.ts";
import { deviceProblem, type DeviceProblem } from "../call/devices.ts";
import { chooseStage, type Sound, type Tile as TileData } from "../call/tiles.ts";
import { clock } from "../lib/format.ts";
import { fitGrid } from "../lib/layout.ts";
import { useStore } from "../lib/store.ts";
import { callLink } from "../matrix/rooms.ts";
import type { Leg } from "../phone/api.ts";
import { t } from "../strings/en.ts";
import { Icon, type IconName } from "./icons.tsx";
import { Bars, Button, CopyButton, Dialog, Face, IconButton, Sheet, Spinner } from "./parts.tsx";
import { Pickers } from "./lobby.tsx";
import { KeypadButton, PhonePanel, PlacedCalls, useRoomPhones, Waiting } from "./phone.tsx";
import { Chat, HostActions, Members } from "./room.tsx";
import { TroublePanel } from "./trouble.tsx";

type Panel = "people" | "chat" | undefined;
const GAP = 8;

/** CallView is the call: people large, the rest at the edge. */
export function CallView({ call }: { call: Call }): JSX.Element {
  const s = useStore(call.state);
  const [panel, setPanel] = useState<Panel>();
  const [spotlight, setSpotlight] = useState(false);
  const [pinned, setPinned] = useState<string>();
  const [settings, setSettings] = useState(false);
  useEffect(() => {
    document.title = `${call.room.name} · ${t.app}`;
  }, [call.room.name]);
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  useKeys(call);
  useWakeLock();

  const [found, look] = useRoomPhones(call.room);
  const tiles = s.scene.tiles;
  const stageKey = chooseStage(tiles, pinned, spotlight, s.lastSpeaker);
  const stage = tiles.find((x) => x.key === stageKey);
  const rest = stage ? tiles.filter((x) => x !== stage) : tiles;
  const togglePin = (key: string) => setPinned(pinned === key ? undefined : key);
  const alone = s.phase === "connected" && tiles.every((x) => x.local);

  return (
    <div class={`call ${panel ? "with-sheet" : ""}`} data-testid="call" data-phase={s.phase} data-encrypted={call.encrypted} data-route={s.route}>
      <CallHead heading={heading} call={call} spotlight={spotlight || pinned !== undefined} onLayout={() => (setPinned(undefined), setSpotlight(!(spotlight || pinned !== undefined)))} onSettings={() => setSettings(true)} />
      <main class="call-main">
        {s.phase === "reconnecting" && !s.trouble && (
          <p class="toast" role="status">
            <i class="spin" /> {t.call.reconnecting}
          </p>
        )}
        {s.deviceTrouble && <DeviceToast call={call} trouble={s.deviceTrouble} />}
        {s.soundBlocked && (
          <p class="toast" role="alert">
            {t.call.soundWhy}
            <Button kind="primary" icon="speaker" onClick={() => void call.allowSound()} data-testid="allow-sound">
              {t.call.sound}
            </Button>
          </p>
        )}
        {stage ? (
          <Spotlight
            stage={<Tile key={stage.key} tile={stage} call={call} large onPin={() => togglePin(stage.key)} pinned={pinned === stage.key} />}
            strip={rest.map((x) => (
              <Tile key={x.key} tile={x} call={call} onPin={() => togglePin(x.key)} pinned={false} />
            ))}
          />
        ) : (
          <Grid count={rest.length}>
            {rest.map((x) => (
              <Tile key={x.key} tile={x} call={call} onPin={() => togglePin(x.key)} pinned={false} />
            ))}
          </Grid>
        )}
        {s.phase === "joining" && !s.trouble && (
          <div class="toast">
            <Spinner label={t.call.connecting} />
          </div>
        )}
        {alone && (
          <p class="toast low" role="status" data-testid="alone">
            {t.call.alone}
            <CopyButton label={t.room.copyLink} done={t.room.linkCopied} text={() => callLink(call.client, call.room, location.origin)} />
          </p>
        )}
        {s.trouble && <TroublePanel call={call} trouble={s.trouble} phase={s.phase} />}
      </main>
      <Controls call={call} panel={panel} setPanel={setPanel} />
      {found && panel !== "people" && (
        <div class="call-waiting">
          {found.mayAdmit && <Waiting legs={found.waiting} onDone={look} />}
          <PlacedCalls room={call.room} />
        </div>
      )}
      {panel === "people" && (
        <Sheet title={t.call.inCall(new Set(tiles.map((x) => x.userId)).size)} onClose={() => setPanel(undefined)} testId="people-sheet">
          {found?.mayAdmit && <Waiting legs={found.waiting} onDone={look} />}
          <People call={call} legs={found?.legs ?? []}>
            {found && (
              <details class="in-room" data-testid="call-phones">
                <summary>
                  <span class="phone-mark">
                    <Icon name="phone" size={18} />
                  </span>{" "}
                  {t.phone.title}
                </summary>
                <PhonePanel room={call.room} found={found} look={look} inCall />
              </details>
            )}
          </People>
        </Sheet>
      )}
      {panel === "chat" && (
        <Sheet title={t.call.chat} onClose={() => setPanel(undefined)} testId="chat-sheet">
          <Chat room={call.room} />
        </Sheet>
      )}
      {settings && (
        <Dialog title={t.call.settings} onClose={() => setSettings(false)}>
          <Pickers onPick={(kind, id) => void call.useDevice(kind, id)} />
        </Dialog>
      )}
      {s.scene.sounds.map((x) => (
        <Heard key={x.key} sound={x} />
      ))}
      <Announcer tiles={tiles} />
    </div>
  );
}

function CallHead({ heading, call, spotlight, onLayout, onSettings }: { heading: RefObject<HTMLHeadingElement | null>; call: Call; spotlight: boolean; onLayout: () => void; onSettings: () => void }): JSX.Element {
  const s = useStore(call.state);
  return (
    <header class="call-head">
      <div class="call-title">
        <h1 ref={heading} tabIndex={-1}>
          {call.room.name}
        </h1>
        <span class={`lock ${call.encrypted ? "live" : ""}`} data-testid="call-encryption" title={call.encrypted ? t.room.encrypted : t.room.notEncrypted}>
          <Icon name={call.encrypted ? "lock" : "unlock"} size={16} />
          <span class="wide-only">{call.encrypted ? t.room.encrypted : t.room.notEncrypted}</span>
          <span class="only-narrow-inline" aria-hidden="true">
            {call.encrypted ? t.room.encryptedShort : t.room.notEncrypted}
          </span>
        </span>
      </div>
      <span class="call-facts">
        <Bars quality={s.quality} label={t.call.quality[s.quality] + (s.route ? `, ${t.call.routes[s.route]}` : "")} />
        {s.startedAt !== undefined && <Timer since={s.startedAt} />}
      </span>
      <IconButton icon={spotlight ? "grid" : "spotlight"} label={spotlight ? t.call.grid : t.call.spotlight} onClick={onLayout} data-testid="call-layout" />
      <IconButton icon="settings" label={t.call.settings} onClick={onSettings} data-testid="call-settings" />
    </header>
  );
}

function Timer({ since }: { since: number }): JSX.Element {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return (
    <time class="timer" role="timer">
      {clock((now - since) / 1000)}
    </time>
  );
}

/** useSize follows an element's size. */
function useSize<E extends HTMLElement>(): [RefObject<E | null>, { width: number; height: number }] {
  const ref = useRef<E>(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const el = ref.current!;
    const read = () => setSize({ width: el.clientWidth, height: el.clientHeight });
    read();
    const observer = new ResizeObserver(read);
    observer.observe(el);
    return () => observer.disconnect();
  }, []);
  return [ref, size];
}

function Grid({ count, children }: { count: number; children: ComponentChildren }): JSX.Element {
  const [ref, size] = useSize<HTMLDivElement>();
  const upright = size.height > size.width;
  const g = fitGrid(count, size.width, size.height, GAP, 16 / 9, upright ? 0.9 : 4 / 3);
  return (
    <div class="grid" ref={ref} style={{ "--tile-w": `${g.width}px`, "--tile-h": `${g.height}px`, "--columns": g.columns }} data-testid="grid">
      {children}
    </div>
  );
}

function Spotlight({ stage, strip }: { stage: JSX.Element; strip: JSX.Element[] }): JSX.Element {
  return (
    <div class="spotlight" data-testid="spotlight">
      <div class="stage">{stage}</div>
      {strip.length > 0 && <div class="strip">{strip}</div>}
    </div>
  );
}

interface TileProps {
  tile: TileData<Track>;
  call: Call;
  large?: boolean;
  pinned: boolean;
  onPin: () => void;
}

/** Tile is one person, or one shared screen. */
function Tile({ tile, call, large = false, pinned, onPin }: TileProps): JSX.Element {
  const video = useRef<HTMLVideoElement>(null);
  const [size, setSize] = useState<{ w: number; h: number }>();
  useEffect(() => {
    setSize(undefined);
    const el = video.current;
    const track = tile.video;
    if (!el || !track) return;
    track.attach(el);
    return () => void track.detach(el);
  }, [tile.video]);
  const screen = tile.kind === "screen";
  const name = screen ? (tile.local ? t.call.yourScreen : t.call.screenOf(tile.name)) : tile.name;
  const beyond = tile.phone !== undefined && call.encrypted;
  const facts: string[] = [];
  if (!screen && tile.muted) facts.push(t.call.muted);
  if (tile.hand) facts.push(t.call.handUp);
  if (tile.phone) facts.push(t.phone.mark);
  if (tile.phone?.held) facts.push(t.phone.held);
  if (tile.plain) facts.push(t.call.plain);
  if (beyond) facts.push(t.phone.beyond);
  if (tile.waiting) facts.push(t.call.waiting);
  if (tile.otherDevice) facts.push(t.call.otherDevice);
  if (!tile.local) facts.push(t.call.quality[tile.quality]);
  return (
    <figure
      class={`tile ${tile.kind} ${tile.speaking ? "speaking" : ""} ${tile.local ? "local" : ""} ${large ? "large" : ""}`}
      aria-label={t.call.tile(name, facts)}
      data-testid="tile"
      data-identity={tile.identity}
      data-user={tile.userId}
      data-kind={tile.kind}
      data-local={tile.local}
      data-muted={tile.muted}
      data-video={tile.video !== undefined}
      data-waiting={tile.waiting}
      data-hand={tile.hand}
      data-plain={tile.plain}
      data-keyless={tile.keyless}
      data-speaking={tile.speaking}
      data-phone={tile.phone !== undefined}
      data-held={tile.phone?.held ?? false}
    >
      {tile.phone ? (
        <span class="tile-face phone-face" aria-hidden="true">
          <Icon name={tile.phone.held ? "pause" : "phone"} size={44} />
        </span>
      ) : (
        (!tile.video || !size) && !screen && <Face id={tile.userId} name={tile.name} size={96} class="tile-face" />
      )}
      {tile.video && (
        <video
          ref={video}
          autoPlay
          playsInline
          muted
          class={`${tile.local && !screen ? "mirror" : ""} ${screen || (size && size.h > size.w) ? "whole" : ""}`}
          onResize={(e) => setSize({ w: e.currentTarget.videoWidth, h: e.currentTarget.videoHeight })}
        />
      )}
      {tile.keyless && !tile.waiting && (
        <span class="tile-state">
          <Icon name="lock" size={20} /> {t.call.keyless}
        </span>
      )}
      {tile.phone && (tile.phone.held || tile.phone.status === "ringing" || tile.phone.status === "dialing") && (
        <span class="tile-state" data-testid="tile-phone-state">
          {tile.phone.held ? t.phone.held : tile.phone.status === "ringing" ? t.phone.states.ringing : t.phone.states.trying}
        </span>
      )}
      {tile.waiting && !tile.local && (
        <span class="tile-state">
          <i class="spin" /> {t.call.waiting}
        </span>
      )}
      {tile.hand && (
        <span class="hand" role="img" aria-label={t.call.handUp} data-testid="tile-hand">
          <Icon name="hand" size={22} />
        </span>
      )}
      <figcaption class="plate">
        {screen ? <Icon name="share" size={16} /> : tile.muted && <Icon name="micOff" size={16} />}
        {tile.phone && <Icon name="phone" size={16} />}
        <span class="plate-name">
          {name}
          {tile.local && !screen && ` (${t.you})`}
        </span>
        {beyond && (
          <span class="unsealed beyond" data-testid="tile-beyond" title={t.phone.e2eeHint}>
            <Icon name="unlock" size={16} /> <span>{t.phone.beyond}</span>
          </span>
        )}
        {tile.plain && (
          <span class="unsealed" data-testid="tile-plain">
            <Icon name="unlock" size={16} /> <span>{t.call.plain}</span>
          </span>
        )}
        {!screen && <Bars quality={tile.quality} label={t.call.quality[tile.quality]} />}
      </figcaption>
      <IconButton icon="pin" class={`pin ${pinned ? "on" : ""}`} label={pinned ? t.call.unpin(name) : t.call.pin(name)} aria-pressed={pinned} onClick={onPin} />
    </figure>
  );
}

/** Heard plays one voice. It has nothing to see. */
function Heard({ sound }: { sound: Sound<Track> }): JSX.Element {
  const ref = useRef<HTMLAudioElement>(null);
  useEffect(() => {
    const el = ref.current!;
    sound.track.attach(el);
    return () => void sound.track.detach(el);
  }, [sound.track]);
  return <audio ref={ref} autoPlay data-sound={sound.key} />;
}

function Controls({ call, panel, setPanel }: { call: Call; panel: Panel; setPanel: (p: Panel) => void }): JSX.Element {
  const s = useStore(call.state);
  const canShare = typeof navigator.mediaDevices?.getDisplayMedia === "function";
  const toggle = (p: Panel) => setPanel(panel === p ? undefined : p);
  const hands = s.scene.tiles.filter((x) => x.hand && x.kind === "camera").length;
  return (
    <footer class="controls-bar">
      <div class="controls" role="toolbar" aria-label={t.call.controls}>
      <Control icon={s.mic ? "mic" : "micOff"} label={s.mic ? t.call.mute : t.call.unmute} keys={t.call.keys.mic} off={!s.mic} onClick={() => void call.setMic(!s.mic)} testId="call-mute" pressed={!s.mic} />
      <Control icon={s.camera ? "camera" : "cameraOff"} label={s.camera ? t.call.cameraOff : t.call.cameraOn} keys={t.call.keys.camera} off={!s.camera} onClick={() => void call.setCamera(!s.camera)} testId="call-camera" pressed={!s.camera} />
      {canShare && <Control icon={s.sharing ? "stopShare" : "share"} label={s.sharing ? t.call.stopShare : t.call.share} on={s.sharing} onClick={() => void call.setSharing(!s.sharing)} testId="call-share" pressed={s.sharing} />}
      <Control icon="hand" label={s.hand ? t.call.lowerHand : t.call.hand} on={s.hand} onClick={() => void call.setHand(!s.hand)} testId="call-hand" pressed={s.hand} />
      <Control icon="people" label={t.call.people} on={panel === "people"} onClick={() => toggle("people")} testId="participants" expanded={panel === "people"} badge={hands > 0 ? hands : undefined} />
      <Control icon="chat" label={t.call.chat} on={panel === "chat"} onClick={() => toggle("chat")} testId="call-chat" expanded={panel === "chat"} />
      <Control icon="leave" label={t.call.leave} danger onClick={() => void call.leave()} testId="call-leave" />
      </div>
    </footer>
  );
}

interface ControlProps {
  icon: IconName;
  label: string;
  onClick: () => void;
  testId: string;
  keys?: string;
  on?: boolean;
  off?: boolean;
  danger?: boolean;
  pressed?: boolean;
  expanded?: boolean;
  badge?: number | undefined;
}

function Control({ icon, label, onClick, testId, keys, on, off, danger, pressed, expanded, badge }: ControlProps): JSX.Element {
  return (
    <button
      type="button"
      class={`control ${on ? "on" : ""} ${off ? "off" : ""} ${danger ? "danger" : ""}`}
      aria-label={label}
      aria-pressed={pressed}
      aria-expanded={expanded}
      title={keys ? `${label} (${keys})` : label}
      onClick={onClick}
      data-testid={testId}
    >
      <span class="knob">
        <Icon name={icon} size={24} />
        {badge !== undefined && <span class="badge">{badge}</span>}
      </span>
      <span class="word" aria-hidden="true">
        {label}
      </span>
    </button>
  );
}

/** People lists who is in the call, with host actions, then the room's members. */
function People({ call, legs, children }: { call: Call; legs: Leg[]; children: ComponentChildren }): JSX.Element {
  const s = useStore(call.state);
  const client = useMatrix();
  const me = client.getSafeUserId();
  const tiles = s.scene.tiles.filter((x) => x.kind === "camera");
  return (
    <>
      <ul class="people-list" data-testid="people">
        {tiles.map((x) => {
          const member = call.room.getMember(x.userId);
          const leg = x.phone && legs.find((l) => l.identity === x.identity);
          return (
            <li key={x.key} class="person" data-user={x.userId}>
              <Face id={x.userId} name={x.name} />
              <span class="who">
                <b>
                  {x.name}
                  {x.local && ` (${t.you})`}
                </b>
                <small>{[x.phone ? t.phone.mark : undefined, x.phone?.held ? t.phone.held : undefined, x.plain ? t.call.plain : undefined, x.otherDevice ? t.call.otherDevice : undefined, x.userId].filter(Boolean).join(" · ")}</small>
              </span>
              {leg && <KeypadButton leg={leg} />}
              {x.hand && <Icon name="hand" size={18} />}
              {x.muted && <Icon name="micOff" size={18} />}
              {member && !x.otherDevice && <HostActions room={call.room} member={member} me={me} />}
            </li>
          );
        })}
      </ul>
      {children}
      <details class="in-room">
        <summary>{t.call.inRoom}</summary>
        <Members room={call.room} />
      </details>
    </>
  );
}

function DeviceToast({ call, trouble }: { call: Call; trouble: NonNullable<Call["state"]["value"]["deviceTrouble"]> }): JSX.Element {
  const what = trouble.path === "camera" ? t.device.camera : trouble.path === "screen" ? t.device.screen : t.device.microphone;
  const problem = (trouble.details.problem ?? deviceProblem(undefined)) as DeviceProblem;
  return (
    <p class="toast bad" role="alert" data-testid="device-trouble" data-code={trouble.code}>
      <Icon name="warn" size={18} />
      <span>
        {t.device[problem](what)} <code>{trouble.code}</code>
      </span>
      <IconButton icon="close" label={t.close} onClick={() => call.dismissDeviceTrouble()} />
    </p>
  );
}

/** Announcer tells those who do not see the tiles who came and who went. */
function Announcer({ tiles }: { tiles: TileData<Track>[] }): JSX.Element {
  const [text, setText] = useState("");
  const before = useRef<Map<string, string> | undefined>(undefined);
  const names = useMemo(() => new Map(tiles.filter((x) => x.kind === "camera" && !x.local).map((x) => [x.identity, x.name])), [tiles]);
  useEffect(() => {
    const old = before.current;
    before.current = names;
    if (!old) return;
    const came = [...names].filter(([id]) => !old.has(id)).map(([, n]) => t.call.announceJoined(n));
    const went = [...old].filter(([id]) => !names.has(id)).map(([, n]) => t.call.announceLeft(n));
    if (came.length + went.length > 0) setText([...came, ...went].join(". "));
  }, [names]);
  return (
    <p class="unseen" role="status" aria-live="polite">
      {text}
    </p>
  );
}

function useKeys(call: Call): void {
  useEffect(() => {
    const onKey = (e: KeyboardEvent) => {
      if (!(e.ctrlKey || e.metaKey) || e.altKey || e.shiftKey) return;
      if (e.key === "d") void call.setMic(!call.state.value.mic);
      else if (e.key === "e") void call.setCamera(!call.state.value.camera);
      else return;
      e.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [call]);
}

/** useWakeLock keeps the screen on for the length of a call, where the browser can. */
function useWakeLock(): void {
  useEffect(() => {
    let lock: WakeLockSentinel | undefined;
    let over = false;
    const take = () => {
      if (document.visibilityState !== "visible" || !("wakeLock" in navigator)) return;
      navigator.wakeLock.request("screen").then(
        (l) => {
          if (over) void l.release();
          else lock = l;
        },
        () => undefined,
      );
    };
    take();
    document.addEventListener("visibilitychange", take);
    return () => {
      over = true;
      document.removeEventListener("visibilitychange", take);
      void lock?.release();
    };
  }, []);
}
