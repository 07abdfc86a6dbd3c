import type { JSX } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import type { Room } from "matrix-js-sdk";
import { useMatrix } from "../app.ts";
import { Store, useStore } from "../lib/store.ts";
import * as phones from "../phone/api.ts";
import { PhoneError, phoneConfig, spacedPin, type Leg, type RoomPhones } from "../phone/api.ts";
import { t } from "../strings/en.ts";
import { Icon } from "./icons.tsx";
import { Ask, Button, CopyButton, Dialog, Field, IconButton } from "./parts.tsx";

const LOOK_EVERY_MS = 4000;
const SHOW_ENDED_MS = 12_000;

/** explainPhone puts a refusal of the server into words. */
export function explainPhone(e: unknown): string {
  if (!(e instanceof PhoneError)) return t.phone.failed;
  if (e.code === "M_LIMIT_EXCEEDED") return e.message || t.phone.tooOften;
  if (e.code === "NETWORK") return t.errors.noServer;
  return e.message || (e.cause === "" ? t.phone.failed : t.phone.causes[e.cause]);
}

/** nameOfLeg is how a telephone is called where no ghost's name is at hand. */
export function nameOfLeg(leg: Leg): string {
  return leg.name || leg.number || (leg.direction === "inbound" ? t.phone.anonymous : t.phone.someone);
}

/** useRoomPhones asks about a room's telephones and keeps asking while it is on screen. */
export function useRoomPhones(room: Room): [RoomPhones | undefined, () => void] {
  const client = useMatrix();
  const { enabled } = useStore(phoneConfig);
  const [found, setFound] = useState<RoomPhones>();
  const look = useCallback(() => {
    if (!enabled) return;
    phones.roomPhones(client, room.roomId).then(setFound, (e: unknown) => {
      // Not a member, or no telephones any more: there is nothing to show.
      if (e instanceof PhoneError && e.status >= 400 && e.status < 500 && e.status !== 429) setFound(undefined);
    });
  }, [client, room.roomId, enabled]);
  useEffect(() => {
    setFound(undefined);
    look();
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") look();
    }, LOOK_EVERY_MS);
    return () => clearInterval(timer);
  }, [look]);
  return [found, look];
}

const KEYS: [string, string][] = [
  ["1", ""],
  ["2", "ABC"],
  ["3", "DEF"],
  ["4", "GHI"],
  ["5", "JKL"],
  ["6", "MNO"],
  ["7", "PQRS"],
  ["8", "TUV"],
  ["9", "WXYZ"],
  ["*", ""],
  ["0", "+"],
  ["#", ""],
];

/** Pad is the twelve keys of a telephone. A long press on 0 is +. */
export function Pad({ onKey, disabled = false }: { onKey: (key: string) => void; disabled?: boolean }): JSX.Element {
  const held = useRef<ReturnType<typeof setTimeout>>(undefined);
  const long = useRef(false);
  return (
    <div class="pad" role="group" aria-label={t.phone.keys} data-testid="dial-pad">
      {KEYS.map(([key, letters]) => (
        <button
          key={key}
          type="button"
          disabled={disabled}
          aria-label={key}
          data-key={key}
          onPointerDown={() => {
            long.current = false;
            if (key === "0") {
              held.current = setTimeout(() => {
                long.current = true;
                onKey("+");
              }, 600);
            }
          }}
          onPointerUp={() => clearTimeout(held.current)}
          onPointerLeave={() => clearTimeout(held.current)}
          onClick={() => {
            if (!long.current) onKey(key);
            long.current = false;
          }}
        >
          <b>{key}</b>
          <small aria-hidden="true">{letters || " "}</small>
        </button>
      ))}
    </div>
  );
}

/** The calls that were placed from this page and are not yet over and seen, with their rooms. */
const placedCalls = new Store<{ roomId: string; leg: Leg }[]>([]);

/** PlacedCalls tells how the calls fare that were placed from here. */
export function PlacedCalls({ room }: { room: Room }): JSX.Element {
  const mine = useStore(placedCalls).filter((p) => p.roomId === room.roomId);
  return (
    <>
      {mine.map(({ leg }) => (
        <Placed key={leg.id} first={leg} />
      ))}
    </>
  );
}

/** AddPhone is the dial pad with which a telephone is called into a room. */
export function AddPhone({ room }: { room: Room }): JSX.Element {
  const client = useMatrix();
  const [number, setNumber] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string>();
  const call = async () => {
    if (busy || number.trim() === "") return;
    setBusy(true);
    setError(undefined);
    try {
      const leg = await phones.dial(client, room.roomId, number.trim());
      placedCalls.set([...placedCalls.value, { roomId: room.roomId, leg }]);
      setNumber("");
    } catch (e) {
      setError(explainPhone(e));
    } finally {
      setBusy(false);
    }
  };
  return (
    <form
      class="dialler"
      data-testid="add-phone"
      onSubmit={(e) => {
        e.preventDefault();
        void call();
      }}
    >
      <h3>{t.phone.add}</h3>
      <PlacedCalls room={room} />
      <div class="dialler-number">
        <Field label={t.phone.number} hint={t.phone.numberHint} error={error} value={number} onValue={(v) => (setNumber(phones.dialable(v)), setError(undefined))} autoComplete="off" spellCheck={false} testId="dial-number" />
        <IconButton icon="erase" label={t.phone.erase} disabled={number === ""} onClick={() => setNumber(number.slice(0, -1))} />
      </div>
      <Pad onKey={(key) => setNumber((n) => phones.dialable(n + key))} />
      <Button type="submit" kind="primary" class="wide" icon="phone" busy={busy} disabled={number.trim() === ""} data-testid="dial-call">
        {busy ? t.phone.calling : t.phone.call}
      </Button>
    </form>
  );
}

/** Placed follows one call that was placed from here until it is over. */
function Placed({ first }: { first: Leg }): JSX.Element {
  const client = useMatrix();
  const [leg, setLeg] = useState(first);
  const [problem, setProblem] = useState<string>();
  const gone = () => placedCalls.set(placedCalls.value.filter((p) => p.leg.id !== first.id));
  useEffect(() => {
    const stop = new AbortController();
    let close: ReturnType<typeof setTimeout> | undefined;
    void (async () => {
      let now = first;
      while (!stop.signal.aborted && now.state !== "ended") {
        try {
          now = await phones.follow(client, now.id, now.state, stop.signal);
          setLeg(now);
          setProblem(undefined);
          const last = now;
          placedCalls.set(placedCalls.value.map((p) => (p.leg.id === last.id ? { ...p, leg: last } : p)));
        } catch (e) {
          if (stop.signal.aborted) return;
          if (e instanceof PhoneError && e.status === 404) break; // long over
          setProblem(explainPhone(e));
          await new Promise((done) => setTimeout(done, 2000));
        }
      }
      if (!stop.signal.aborted) close = setTimeout(gone, SHOW_ENDED_MS);
    })();
    return () => {
      stop.abort();
      clearTimeout(close);
    };
  }, [client, first.id]);
  const over = leg.state === "ended";
  const words = over ? leg.text || t.phone.causes[leg.cause] || t.phone.causes.failed : t.phone.states[leg.state];
  return (
    <div class={`placed ${over ? "over" : ""}`} data-testid="placed-call" data-state={leg.state} data-cause={leg.cause}>
      <Icon name="phone" size={20} />
      <span class="who">
        <b>{nameOfLeg(leg)}</b>
        <small role="status">
          {problem ?? words}
          {over && leg.code > 0 && <code> {leg.code}</code>}
        </small>
      </span>
      {over ? (
        <IconButton icon="close" label={t.phone.dismiss} onClick={gone} />
      ) : (
        <>
          {(leg.state === "answered" || leg.state === "confirmed" || leg.state === "early") && <KeypadButton leg={leg} />}
          <IconButton icon="leave" class="danger-text" label={t.phone.hangUp} onClick={() => void phones.hangUp(client, leg.id).catch((e: unknown) => setProblem(explainPhone(e)))} data-testid="placed-hangup" />
        </>
      )}
    </div>
  );
}

/** KeypadButton opens the keys that are played to a telephone as tones. */
export function KeypadButton({ leg }: { leg: Leg }): JSX.Element {
  const client = useMatrix();
  const [open, setOpen] = useState(false);
  const [played, setPlayed] = useState("");
  const [error, setError] = useState<string>();
  const play = (key: string) => {
    if (!/^[0-9*#]$/.test(key)) return;
    setPlayed((p) => (p + key).slice(-24));
    phones.pressDigits(client, leg.id, key).then(
      () => setError(undefined),
      (e: unknown) => setError(explainPhone(e)),
    );
  };
  return (
    <>
      <IconButton icon="keypad" label={`${t.phone.keypad}: ${nameOfLeg(leg)}`} onClick={() => setOpen(true)} data-testid="keypad" />
      {open && (
        <Dialog title={`${t.phone.keypad} · ${nameOfLeg(leg)}`} onClose={() => (setOpen(false), setPlayed(""))} testId="keypad-dialog">
          <div
            class="dialler"
            onKeyDown={(e) => {
              if (e.key.length === 1) play(e.key);
            }}
          >
            <output class="played" aria-live="polite">
              {played || " "}
            </output>
            <Pad onKey={play} />
            <p class="error form-error" role="alert">
              {error}
            </p>
          </div>
        </Dialog>
      )}
    </>
  );
}

/** Waiting lists the telephones that stand in the lobby. */
export function Waiting({ legs, onDone }: { legs: Leg[]; onDone: () => void }): JSX.Element | null {
  const client = useMatrix();
  const [error, setError] = useState<string>();
  if (legs.length === 0) return null;
  const answer = (leg: Leg, yes: boolean) => {
    phones
      .admit(client, leg.id, yes)
      .then(() => setError(undefined))
      .catch((e: unknown) => setError(explainPhone(e)))
      .finally(onDone);
  };
  return (
    <div class="waiting" role="status" data-testid="phone-waiting">
      {legs.map((leg) => (
        <div key={leg.id} class="placed asks">
          <Icon name="phone" size={20} />
          <b>{t.phone.waits(nameOfLeg(leg))}</b>
          <Button onClick={() => answer(leg, false)}>{t.phone.refuse}</Button>
          <Button kind="primary" onClick={() => answer(leg, true)} data-testid="phone-admit">
            {t.phone.letIn}
          </Button>
        </div>
      ))}
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
    </div>
  );
}

/** DialIn shows how to reach a room by telephone, and lets those who may change that. */
export function DialIn({ room, found, look }: { room: Room; found: RoomPhones; look: () => void }): JSX.Element {
  const client = useMatrix();
  const [busy, setBusy] = useState(false);
  const [asking, setAsking] = useState(false);
  const [error, setError] = useState<string>();
  const run = (work: Promise<void>) => {
    setBusy(true);
    work
      .then(() => setError(undefined))
      .catch((e: unknown) => setError(explainPhone(e)))
      .finally(() => (setBusy(false), look()));
  };
  const pin = spacedPin(found.pin);
  const first = found.numbers[0];
  return (
    <section class="dial-in" data-testid="dial-in">
      <h3>{t.phone.dialIn}</h3>
      {!first ? (
        <p class="muted">{t.phone.noNumber}</p>
      ) : found.pin === "" ? (
        <p class="muted">
          {t.phone.noPin} {!found.mayChange && t.phone.notForYou}
        </p>
      ) : (
        <>
          <dl class="line-card">
            {found.numbers.map((n) => (
              <div key={n.number}>
                <dt>{n.language ? t.phone.language(n.language) : t.phone.number}</dt>
                <dd>
                  <a href={`tel:${n.number}`} data-testid="dial-in-number">
                    {n.display}
                  </a>
                </dd>
              </div>
            ))}
            <div>
              <dt>{t.phone.pin}</dt>
              <dd data-testid="dial-in-pin">{pin}</dd>
            </div>
          </dl>
          <CopyButton label={t.phone.copy} text={() => t.phone.invite(room.name, first.display, found.pin)} testId="copy-dial-in" />
        </>
      )}
      {found.mayChange && (
        <div class="stack">
          {first && (
            <Button busy={busy} onClick={() => (found.pin === "" ? run(phones.newPin(client, room.roomId)) : setAsking(true))} data-testid="pin-new">
              {found.pin === "" ? t.phone.makePin : t.phone.changePin}
            </Button>
          )}
          {found.encrypted && (
            <Switch label={t.phone.e2ee} hint={t.phone.e2eeHint} on={found.e2ee === "allow"} busy={busy} onChange={(on) => run(phones.setRoomPhones(client, room.roomId, { e2ee: on ? "allow" : "deny" }))} testId="phone-e2ee" />
          )}
          <Switch label={t.phone.lobby} on={found.lobby} busy={busy} onChange={(on) => run(phones.setRoomPhones(client, room.roomId, { lobby: on }))} testId="phone-lobby" />
          <Switch label={t.phone.locked} on={found.locked} busy={busy} onChange={(on) => run(phones.setRoomPhones(client, room.roomId, { locked: on }))} testId="phone-locked" />
        </div>
      )}
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      {asking && (
        <Ask
          question={t.phone.changePinAsk}
          yes={t.phone.changePin}
          onNo={() => setAsking(false)}
          onYes={() => {
            setAsking(false);
            run(phones.newPin(client, room.roomId));
          }}
        />
      )}
    </section>
  );
}

function Switch({ label, hint, on, busy, onChange, testId }: { label: string; hint?: string; on: boolean; busy: boolean; onChange: (on: boolean) => void; testId: string }): JSX.Element {
  return (
    <label class="choice">
      <input type="checkbox" checked={on} disabled={busy} onChange={(e) => onChange(e.currentTarget.checked)} data-testid={testId} />
      <span>
        <b>{label}</b>
        {hint && <small>{hint}</small>}
      </span>
    </label>
  );
}

/** PhonePanel is everything about a room's telephones, for the sheet beside the room. */
export function PhonePanel({ room, found, look, inCall = false }: { room: Room; found: RoomPhones; look: () => void; inCall?: boolean }): JSX.Element {
  const dialler = found.mayDial && <AddPhone room={room} />;
  return (
    <div class="phone-panel">
      {inCall && dialler}
      <DialIn room={room} found={found} look={look} />
      {!inCall && dialler}
    </div>
  );
}
