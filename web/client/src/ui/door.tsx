import { MatrixError } from "matrix-js-sdk";
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { app, enter, explain, useApp } from "../app.ts";
import { go, parseRoute, useRoute } from "../lib/router.ts";
import { lookAtServer } from "../matrix/config.ts";
import { register, signIn } from "../matrix/session.ts";
import { t } from "../strings/en.ts";
import { Icon, Mark } from "./icons.tsx";
import { Button, Field } from "./parts.tsx";

type Tab = "login" | "register" | "link";

/** Door is the first page: who this server is, and the ways in. */
export function Door(): JSX.Element {
  const { config, server, notice } = useApp();
  const route = useRoute();
  const [tab, setTab] = useState<Tab>(route.at === "register" ? "register" : "login");
  const tabs: [Tab, string][] = [
    ["login", t.door.signIn],
    ["register", t.door.register],
    ["link", t.door.link],
  ];
  useEffect(() => {
    document.title = t.app;
  }, []);
  return (
    <div class="door">
      <Switchboard />
      <main class="door-main">
        <div class="brand">
          <Mark size={40} />
          <span>{t.app}</span>
        </div>
        <h1>{t.door.title(config.serverName)}</h1>
        <p class="lead">{t.door.lead}</p>
        {notice && (
          <p class="notice" role="alert">
            <Icon name="warn" size={18} /> {notice}
          </p>
        )}
        <section class="card">
          <div class="tabs" role="tablist">
            {tabs.map(([id, label]) => (
              <button key={id} type="button" role="tab" id={`tab-${id}`} aria-selected={tab === id} aria-controls="door-panel" tabIndex={tab === id ? 0 : -1} data-testid={`tab-${id}`} onClick={() => setTab(id)} onKeyDown={(e) => moveTab(e, tabs.map((x) => x[0]), tab, setTab)}>
                {label}
              </button>
            ))}
          </div>
          <div id="door-panel" role="tabpanel" aria-labelledby={`tab-${tab}`}>
            {tab === "login" && <SignIn />}
            {tab === "register" && <Register />}
            {tab === "link" && <WithLink />}
          </div>
        </section>
        <ServerLine name={config.serverName ?? new URL(config.baseUrl).host} state={server} />
      </main>
    </div>
  );
}

function moveTab(e: KeyboardEvent, all: Tab[], now: Tab, set: (t: Tab) => void): void {
  const step = e.key === "ArrowRight" ? 1 : e.key === "ArrowLeft" ? -1 : 0;
  if (step === 0) return;
  e.preventDefault();
  const next = all[(all.indexOf(now) + step + all.length) % all.length]!;
  set(next);
  document.getElementById(`tab-${next}`)?.focus();
}

/** useSubmit runs a form's work once at a time and keeps its error. */
export function useSubmit(work: () => Promise<void>, say: (e: unknown) => string = explain): { busy: boolean; error: string | undefined; submit: (e?: Event) => void } {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string>();
  const submit = (e?: Event) => {
    e?.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(undefined);
    work()
      .catch((err: unknown) => setError(say(err)))
      .finally(() => setBusy(false));
  };
  return { busy, error, submit };
}

function FormError({ error }: { error: string | undefined }): JSX.Element {
  return (
    <p class="error form-error" role="alert" data-testid="form-error">
      {error}
    </p>
  );
}

function SignIn(): JSX.Element {
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const { busy, error, submit } = useSubmit(
    async () => {
      await enter(await signIn(app.value.config, user, password));
      leaveDoor();
    },
    (e) => (e instanceof MatrixError && (e.errcode === "M_FORBIDDEN" || e.errcode === "M_INVALID_USERNAME") ? t.errors.wrongPassword : explain(e)),
  );
  return (
    <form onSubmit={submit}>
      <Field label={t.door.user} hint={t.door.userHint} value={user} onValue={setUser} autoComplete="username" spellCheck={false} required testId="login-user" />
      <Field label={t.door.password} type="password" value={password} onValue={setPassword} autoComplete="current-password" required testId="login-password" />
      <FormError error={error} />
      <Button type="submit" kind="primary" class="wide" busy={busy} data-testid="login-submit">
        {busy ? t.door.working : t.door.submitSignIn}
      </Button>
    </form>
  );
}

function Register(): JSX.Element {
  const { server, config } = useApp();
  const [user, setUser] = useState("");
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  const [token, setToken] = useState("");
  const { busy, error, submit } = useSubmit(
    async () => {
      if (password !== again) throw new Error("mismatch");
      await enter(await register(config, user, password, token.trim() || undefined));
      leaveDoor();
    },
    (e) => {
      if (e instanceof Error && e.message === "mismatch") return t.door.mismatch;
      if (e instanceof MatrixError && e.httpStatus === 401 && token) return t.errors.badToken;
      return explain(e);
    },
  );
  if (server?.registration === "closed") return <p class="hint pad">{t.door.closed}</p>;
  return (
    <form onSubmit={submit}>
      <Field label={t.door.user} value={user} onValue={setUser} autoComplete="username" spellCheck={false} required testId="register-user" />
      <Field label={t.door.password} type="password" value={password} onValue={setPassword} autoComplete="new-password" required testId="register-password" />
      <Field label={t.door.passwordAgain} type="password" value={again} onValue={setAgain} autoComplete="new-password" required testId="register-password-again" />
      {server?.registration === "token" && <Field label={t.door.token} hint={t.door.tokenHint} value={token} onValue={setToken} required testId="register-token" />}
      <FormError error={error} />
      <Button type="submit" kind="primary" class="wide" busy={busy} data-testid="register-submit">
        {busy ? t.door.working : t.door.submitRegister}
      </Button>
    </form>
  );
}

function WithLink(): JSX.Element {
  const [link, setLink] = useState("");
  const [bad, setBad] = useState(false);
  const open = (e: Event) => {
    e.preventDefault();
    const route = readLink(link.trim());
    if (route) go(route);
    else setBad(true);
  };
  return (
    <form onSubmit={open}>
      <Field
        label={t.door.linkLabel}
        placeholder={`${location.origin}/call/…`}
        value={link}
        onValue={(v) => {
          setLink(v);
          setBad(false);
        }}
        error={bad ? t.door.linkBad : undefined}
        required
        spellCheck={false}
        testId="link-input"
      />
      <Button type="submit" kind="primary" class="wide" data-testid="link-open">
        {t.door.linkGo}
      </Button>
    </form>
  );
}

/** readLink takes a whole address of this server, or a bare room ID or alias. */
export function readLink(s: string): ReturnType<typeof parseRoute> | undefined {
  if (/^[!#]/.test(s)) return { at: "call", room: s, via: [], guest: true };
  let url: URL;
  try {
    url = new URL(s);
  } catch {
    return undefined;
  }
  if (url.origin !== location.origin) return undefined;
  const route = parseRoute(url.pathname, url.search);
  return route.at === "call" || route.at === "room" ? route : undefined;
}

/** leaveDoor goes where the person was heading before they had to sign in. */
function leaveDoor(): void {
  const r = parseRoute(location.pathname, location.search);
  if (r.at === "login" || r.at === "register") go({ at: "home" }, true);
}

function ServerLine({ name, state }: { name: string; state: ReturnType<typeof useApp>["server"] }): JSX.Element {
  useEffect(() => {
    const timer = setInterval(() => void lookAtServer(app.value.config).then((server) => app.value.phase === "door" && app.patch({ server })), 30_000);
    return () => clearInterval(timer);
  }, []);
  const text = !state
    ? t.door.stateChecking
    : !state.reachable
      ? t.door.stateDown
      : [t.door.stateUp(name, state.ms ?? 0), { open: t.door.open, token: t.door.withCode, closed: t.door.closedShort, unknown: "" }[state.registration]].filter(Boolean).join(" · ");
  return (
    <p class={`server-line ${state ? (state.reachable ? "up" : "down") : ""}`} data-testid="server-line" role="status">
      <i aria-hidden="true" /> {text}
    </p>
  );
}

/** Switchboard is the picture beside the door: jacks in rows, some of them connected. */
function Switchboard(): JSX.Element {
  const jacks: JSX.Element[] = [];
  for (let row = 0; row < 9; row++) {
    for (let col = 0; col < 7; col++) {
      jacks.push(<circle key={`${row}-${col}`} cx={40 + col * 60} cy={50 + row * 60} r="9" />);
    }
  }
  return (
    <div class="switchboard" aria-hidden="true">
      <svg viewBox="0 0 440 580" preserveAspectRatio="xMidYMid slice">
        <g class="jacks">{jacks}</g>
        <g class="cords">
          <path d="M100 110C100 330 280 250 280 410" />
          <path d="M340 50C340 240 160 180 160 350" />
          <path d="M220 170C240 330 400 270 400 470" />
        </g>
        <g class="plugs">
          {[
            [100, 110],
            [280, 410],
            [340, 50],
            [160, 350],
            [220, 170],
            [400, 470],
          ].map(([x, y]) => (
            <circle key={`${x}-${y}`} cx={x} cy={y} r="9" />
          ))}
        </g>
      </svg>
    </div>
  );
}
