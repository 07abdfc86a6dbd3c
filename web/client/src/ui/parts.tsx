import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { hue, initials } from "../lib/format.ts";
import { t } from "../strings/en.ts";
import { Icon, type IconName } from "./icons.tsx";

/** Face stands for a person: initials on a colour of their own. */
export function Face({ id, name, size = 36, class: cls = "" }: { id: string; name: string; size?: number; class?: string }): JSX.Element {
  return (
    <span class={`face ${cls}`} style={{ "--hue": hue(id), width: `${size}px`, height: `${size}px`, fontSize: `${Math.round(size * 0.4)}px` }} aria-hidden="true">
      {initials(name)}
    </span>
  );
}

/** Faces is a short row of faces with the rest as a number. */
export function Faces({ people, max = 3, size = 22 }: { people: { id: string; name: string }[]; max?: number; size?: number }): JSX.Element {
  const rest = people.length - max;
  return (
    <span class="faces">
      {people.slice(0, max).map((p) => (
        <Face key={p.id} id={p.id} name={p.name} size={size} />
      ))}
      {rest > 0 && (
        <span class="face rest" style={{ width: `${size}px`, height: `${size}px`, fontSize: `${Math.round(size * 0.42)}px` }} aria-hidden="true">
          +{rest}
        </span>
      )}
    </span>
  );
}

type ButtonProps = Omit<JSX.IntrinsicElements["button"], "icon"> & { icon?: IconName; kind?: "primary" | "plain" | "danger" | "ghost"; busy?: boolean };

export function Button({ icon, kind = "plain", busy = false, children, class: cls, ...rest }: ButtonProps): JSX.Element {
  return (
    <button type="button" {...rest} class={`button ${kind} ${String(cls ?? "")}`} aria-busy={busy || undefined} disabled={busy || rest.disabled}>
      {icon && <Icon name={icon} size={20} />}
      {children}
    </button>
  );
}

/** IconButton has an icon for the eye and words for everybody else. */
export function IconButton({ icon, label, ...rest }: Omit<JSX.IntrinsicElements["button"], "icon"> & { icon: IconName; label: string }): JSX.Element {
  return (
    <button type="button" {...rest} class={`icon-button ${String(rest.class ?? "")}`} aria-label={label} title={label}>
      <Icon name={icon} />
    </button>
  );
}

interface FieldProps {
  label: string;
  type?: "text" | "password";
  name?: string;
  autoComplete?: string;
  autoFocus?: boolean;
  required?: boolean;
  placeholder?: string;
  maxLength?: number;
  spellCheck?: boolean;
  hint?: string;
  error?: string | undefined;
  value: string;
  onValue: (value: string) => void;
  testId?: string;
}

export function Field({ label, hint, error, value, onValue, testId, type = "text", ...rest }: FieldProps): JSX.Element {
  const id = useId();
  const [shown, setShown] = useState(false);
  const secret = type === "password";
  const kind = { type: secret && !shown ? "password" : "text" } as { type: "text" };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <div class="field-box">
        <input
          {...rest}
          id={id}
          {...kind}
          autoCapitalize="off"
          value={value}
          onInput={(e) => onValue(e.currentTarget.value)}
          aria-invalid={error ? true : undefined}
          aria-describedby={error || hint ? `${id}-hint` : undefined}
          data-testid={testId}
        />
        {secret && <IconButton icon="eye" label={shown ? t.door.hide : t.door.show} aria-pressed={shown} onClick={() => setShown(!shown)} />}
      </div>
      {(error || hint) && (
        <p id={`${id}-hint`} class={error ? "error" : "hint"}>
          {error ?? hint}
        </p>
      )}
    </div>
  );
}

/** Dialog is a modal window; Escape and a click beside it close it. */
export function Dialog({ title, onClose, children, testId }: { title: string; onClose: () => void; children: ComponentChildren; testId?: string }): JSX.Element {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const d = ref.current!;
    if (!d.open) d.showModal();
    return () => d.close();
  }, []);
  return (
    <dialog
      ref={ref}
      class="dialog"
      aria-labelledby={id}
      data-testid={testId}
      onCancel={(e) => {
        e.preventDefault();
        onClose();
      }}
      onMouseDown={(e) => e.target === ref.current && onClose()}
    >
      <div class="dialog-body">
        <header>
          <h2 id={id}>{title}</h2>
          <IconButton icon="close" label={t.close} onClick={onClose} />
        </header>
        {children}
      </div>
    </dialog>
  );
}

/** Ask puts one question and waits for yes or no. */
export function Ask({ question, yes, onYes, onNo, danger = true }: { question: string; yes: string; onYes: () => void; onNo: () => void; danger?: boolean }): JSX.Element {
  return (
    <Dialog title={yes} onClose={onNo}>
      <p>{question}</p>
      <div class="row end">
        <Button onClick={onNo}>{t.cancel}</Button>
        <Button kind={danger ? "danger" : "primary"} onClick={onYes} data-testid="ask-yes">
          {yes}
        </Button>
      </div>
    </Dialog>
  );
}

/** Sheet is a panel at the side of the page, or over its lower part on a phone. */
export function Sheet({ title, onClose, children, testId }: { title: string; onClose: () => void; children: ComponentChildren; testId?: string }): JSX.Element {
  const id = useId();
  const ref = useRef<HTMLElement>(null);
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    ref.current?.focus();
    return () => before?.focus?.();
  }, []);
  return (
    <aside
      class="sheet"
      aria-labelledby={id}
      data-testid={testId}
      tabIndex={-1}
      ref={ref}
      onKeyDown={(e) => {
        if (e.key === "Escape") onClose();
      }}
    >
      <header>
        <h2 id={id}>{title}</h2>
        <IconButton icon="close" label={t.close} onClick={onClose} />
      </header>
      <div class="sheet-body">{children}</div>
    </aside>
  );
}

/** CopyButton copies and says so. Where the clipboard is closed it shows the text instead. */
export function CopyButton({ text, label, done = t.copied, icon = "link", testId, kind = "plain" }: { text: () => string; label: string; done?: string; icon?: IconName; testId?: string; kind?: "plain" | "ghost" | "primary" }): JSX.Element {
  const [state, setState] = useState<"idle" | "done" | "failed">("idle");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      setState("done");
      setTimeout(() => setState("idle"), 2500);
    } catch {
      setState("failed");
    }
  };
  return (
    <>
      <Button icon={state === "done" ? "check" : icon} kind={kind} onClick={() => void copy()} data-testid={testId} data-text={text()}>
        <span aria-live="polite">{state === "done" ? done : label}</span>
      </Button>
      {state === "failed" && (
        <Dialog title={label} onClose={() => setState("idle")}>
          <textarea class="copy-text" readOnly rows={6} aria-label={label} value={text()} onFocus={(e) => e.currentTarget.select()} />
        </Dialog>
      )}
    </>
  );
}

/** Bars shows a connection's quality as four bars, with its words for those who do not see them. */
export function Bars({ quality, label }: { quality: "excellent" | "good" | "poor" | "lost" | "unknown"; label: string }): JSX.Element {
  const n = { excellent: 4, good: 3, poor: 1, lost: 0, unknown: 0 }[quality];
  return (
    <span class={`bars ${quality}`} role="img" aria-label={label} title={label}>
      {[1, 2, 3, 4].map((i) => (
        <i key={i} class={i <= n ? "on" : ""} />
      ))}
    </span>
  );
}

export function Spinner({ label }: { label: string }): JSX.Element {
  return (
    <div class="spinner" role="status">
      <i />
      <span>{label}</span>
    </div>
  );
}
