import type { ComponentChildren, JSX } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import { useMatrix } from "../app.ts";
import { clock, timeOfDay } from "../lib/format.ts";
import { go } from "../lib/router.ts";
import { PhoneError, type Cause, type Leg } from "../phone/api.ts";
import { cutOff, liftBan, lossPercent, mosWord, overview, type BanRow, type Overview, type RecordRow, type TrunkRow } from "../phone/operator.ts";
import { t } from "../strings/en.ts";
import { Icon, Mark } from "./icons.tsx";
import { Ask, Button, IconButton, Spinner } from "./parts.tsx";
import { explainPhone, nameOfLeg } from "./phone.tsx";

const LOOK_EVERY_MS = 2000;
const SPARK_POINTS = 90;

/** Operator shows administrators the server's telephone lines: what is up, who speaks, what it was like. */
export function Operator(): JSX.Element {
  const client = useMatrix();
  const [found, setFound] = useState<Overview>();
  const [at, setAt] = useState(0);
  const [refused, setRefused] = useState<number>();
  const [stale, setStale] = useState(false);
  const [said, setSaid] = useState("");
  const [history, setHistory] = useState<number[]>([]);
  const look = useCallback(
    async (signal: AbortSignal) => {
      try {
        const o = await overview(client, signal);
        setFound(o);
        setHistory((h) => [...h, o.legs.length].slice(-SPARK_POINTS));
        setAt(Date.now());
        setStale(false);
        setRefused(undefined);
      } catch (e) {
        if (signal.aborted) return;
        const status = e instanceof PhoneError ? e.status : 0;
        if (status === 401 || status === 403 || status === 404) setRefused(status);
        else setStale(true);
      }
    },
    [client],
  );
  useEffect(() => {
    document.title = `${t.operator.title} · ${t.app}`;
    const stop = new AbortController();
    void look(stop.signal);
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") void look(stop.signal);
    }, LOOK_EVERY_MS);
    return () => {
      clearInterval(timer);
      stop.abort();
    };
  }, [look]);
  const act = async (work: Promise<void>, done: string) => {
    try {
      await work;
      setSaid(done);
    } catch (e) {
      setSaid(explainPhone(e));
    }
    await look(new AbortController().signal);
  };
  return (
    <div class="operator" data-testid="operator">
      <header class="operator-head">
        <Mark size={28} />
        <h1>{t.operator.title}</h1>
        {at > 0 && <span class="muted">{stale ? t.operator.stale : t.operator.updated(new Date(at).toLocaleTimeString())}</span>}
        <Button kind="ghost" icon="back" onClick={() => go({ at: "home" })}>
          {t.operator.toHall}
        </Button>
      </header>
      <main class="operator-main">
        <p class="operator-said" role="status" data-testid="operator-said">
          {said}
        </p>
        {refused !== undefined ? (
          <p class="empty" data-testid="operator-refused">
            {refused === 404 ? t.operator.none : t.operator.only}
          </p>
        ) : !found ? (
          <Spinner label={t.loading} />
        ) : (
          <>
            <Totals found={found} history={history} />
            <Trunks rows={found.trunks} />
            <Legs rows={found.legs} onHangUp={(leg) => void act(cutOff(client, leg.id), t.operator.done.hangup(nameOfLeg(leg)))} />
            <Records rows={found.records} />
            <Bans rows={found.bans} onLift={(b) => void act(liftBan(client, b.source), t.operator.done.lift(b.source))} />
          </>
        )}
      </main>
    </div>
  );
}

function Totals({ found, history }: { found: Overview; history: number[] }): JSX.Element {
  const w = t.operator.totals;
  return (
    <ul class="totals">
      <li>
        <b data-testid="total-active">{found.legs.length}</b> {w.active}
        <Spark values={history} />
      </li>
      <li>
        <b>{found.callsToday}</b> {w.calls}
      </li>
      <li>
        <b>{Math.round(found.minutesToday)}</b> {w.minutes}
      </li>
      <li>
        <b>{found.bans.length}</b> {w.banned}
      </li>
    </ul>
  );
}

/** Spark draws the last values as a line. It says nothing that the number beside it does not. */
function Spark({ values }: { values: number[] }): JSX.Element {
  const top = Math.max(1, ...values);
  const points = values.map((v, i) => `${(i * 120) / Math.max(1, SPARK_POINTS - 1)},${22 - (20 * v) / top}`).join(" ");
  return (
    <svg class="spark" viewBox="0 0 120 24" width={120} height={24} aria-hidden="true" focusable="false">
      <polyline points={points} />
    </svg>
  );
}

function Table({ title, none, heads, count, testId, children }: { title: string; none: string; heads: string[]; count: number; testId: string; children: ComponentChildren }): JSX.Element {
  return (
    <section class="table-card" data-testid={testId} data-count={count}>
      <h2>{title}</h2>
      {count === 0 ? (
        <p class="muted">{none}</p>
      ) : (
        <div class="table-scroll" tabIndex={0} role="region" aria-label={title}>
          <table>
            <thead>
              <tr>
                {heads.map((h) => (
                  <th key={h} scope="col">
                    {h}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>{children}</tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Trunks({ rows }: { rows: TrunkRow[] }): JSX.Element {
  const c = t.operator.cols;
  return (
    <Table title={t.operator.trunks} none={t.operator.noTrunks} heads={[c.trunk, c.state, c.registration, c.ping, c.calls]} count={rows.length} testId="trunks">
      {rows.map((r) => (
        <tr key={r.id} data-trunk={r.id} data-up={r.up}>
          <th scope="row">
            {r.name || r.id} <small>{t.operator.directions[r.direction] ?? r.direction}</small>
            {r.targets.length > 0 && <small class="block">{r.targets.join(", ")}</small>}
          </th>
          <td>
            <span class={r.up ? "live" : "error"}>
              <Icon name={r.up ? "check" : "warn"} size={16} /> {r.up ? t.operator.up : t.operator.down}
            </span>
            {r.problem && <small class="block error">{r.problem}</small>}
          </td>
          <td>{t.operator.registered[r.registered] ?? r.registered}</td>
          <td class="figure">{r.ping_ms > 0 ? `${Math.round(r.ping_ms)} ms` : "–"}</td>
          <td class="figure">{r.max_calls > 0 ? `${r.calls} / ${r.max_calls}` : r.calls}</td>
        </tr>
      ))}
    </Table>
  );
}

function Legs({ rows, onHangUp }: { rows: Leg[]; onHangUp: (leg: Leg) => void }): JSX.Element {
  const c = t.operator.cols;
  const [asking, setAsking] = useState<Leg>();
  const now = Date.now();
  return (
    <>
      <Table title={t.operator.legs} none={t.operator.noLegs} heads={[c.who, c.state, c.trunk, c.since, c.codec, c.loss, c.jitter, c.mos, c.actions]} count={rows.length} testId="legs">
        {rows.map((r) => {
          const loss = lossPercent(r.stats.packets, r.stats.lost);
          return (
            <tr key={r.id} data-leg={r.id}>
              <th scope="row">
                <span class="phone-mark">
                  <Icon name="phone" size={16} /> {nameOfLeg(r)}
                </span>
                <small class="block">
                  {t.operator.directions[r.direction]}
                  {r.name && r.number && ` · ${r.number}`}
                </small>
              </th>
              <td>
                {r.held ? t.phone.held : t.phone.states[r.state]}
                {r.muted && ` · ${t.call.muted}`}
              </td>
              <td>{r.trunk}</td>
              <td class="figure">{clock((now - (r.answered || r.created)) / 1000)}</td>
              <td>
                {r.codec || "–"}
                {r.srtp && <small class="block">{r.srtp.toUpperCase()}</small>}
              </td>
              <td class={`figure ${loss >= 3 ? "error" : ""}`}>{r.stats.packets > 0 ? `${loss.toFixed(1)} %` : t.operator.noSound}</td>
              <td class="figure">{r.stats.packets > 0 ? `${r.stats.jitter_ms.toFixed(0)} ms` : "–"}</td>
              <td class={`figure mos ${mosWord(r.stats.mos)}`}>
                {r.stats.mos > 0 ? r.stats.mos.toFixed(1) : "–"}
                {r.stats.strangers > 0 && <small class="block">{t.operator.strangers(r.stats.strangers)}</small>}
              </td>
              <td>
                <IconButton icon="leave" class="danger-text" label={`${t.phone.hangUp}: ${nameOfLeg(r)}`} onClick={() => setAsking(r)} data-testid="leg-hangup" />
              </td>
            </tr>
          );
        })}
      </Table>
      {asking && (
        <Ask
          question={t.operator.hangUpAsk(nameOfLeg(asking))}
          yes={t.phone.hangUp}
          onNo={() => setAsking(undefined)}
          onYes={() => {
            onHangUp(asking);
            setAsking(undefined);
          }}
        />
      )}
    </>
  );
}

function Records({ rows }: { rows: RecordRow[] }): JSX.Element {
  const c = t.operator.cols;
  return (
    <Table title={t.operator.records} none={t.operator.noRecords} heads={[c.time, c.from, c.to, c.trunk, c.length, c.end, c.mos]} count={rows.length} testId="records">
      {rows.map((r) => (
        <tr key={r.id}>
          <td class="figure">{timeOfDay(r.start)}</td>
          <td>{r.from || t.phone.anonymous}</td>
          <td>{r.to}</td>
          <td>
            {r.trunk} <small>{t.operator.directions[r.dir] ?? r.dir}</small>
          </td>
          <td class="figure">{r.answer > 0 && r.end > 0 ? clock((r.end - r.answer) / 1000) : "–"}</td>
          <td>
            {t.phone.causes[r.cause as Cause] ?? r.cause}
            {r.code > 0 && <code> {r.code}</code>}
          </td>
          <td class={`figure mos ${mosWord(r.mos)}`}>{r.mos > 0 ? r.mos.toFixed(1) : "–"}</td>
        </tr>
      ))}
    </Table>
  );
}

function Bans({ rows, onLift }: { rows: BanRow[]; onLift: (b: BanRow) => void }): JSX.Element {
  const c = t.operator.cols;
  const [asking, setAsking] = useState<BanRow>();
  return (
    <>
      <Table title={t.operator.bans} none={t.operator.noBans} heads={[c.address, c.why, c.until, c.actions]} count={rows.length} testId="bans">
        {rows.map((b) => (
          <tr key={b.source}>
            <th scope="row">{b.source}</th>
            <td>{b.why}</td>
            <td class="figure">{b.until > 0 ? timeOfDay(b.until) : "–"}</td>
            <td>
              <Button onClick={() => setAsking(b)} data-testid="ban-lift">
                {t.operator.lift}
              </Button>
            </td>
          </tr>
        ))}
      </Table>
      {asking && (
        <Ask
          question={t.operator.liftAsk(asking.source)}
          yes={t.operator.lift}
          danger={false}
          onNo={() => setAsking(undefined)}
          onYes={() => {
            onLift(asking);
            setAsking(undefined);
          }}
        />
      )}
    </>
  );
}
