import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { app, useApp } from "../app.ts";
import type { CallSummary } from "../call/call.ts";
import { clock } from "../lib/format.ts";
import { go } from "../lib/router.ts";
import { nameOf } from "../matrix/rooms.ts";
import { t } from "../strings/en.ts";
import { Mark } from "./icons.tsx";
import { Button, Face } from "./parts.tsx";

/** After tells how the call was and where one can go from here. */
export function After({ summary: s }: { summary: CallSummary }): JSX.Element {
  const { client, session } = useApp();
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = t.app;
    heading.current?.focus();
  }, []);
  const room = client?.getRoom(s.roomId);
  const names = s.people.map((id) => nameOf(room, id));
  const out = s.reason === "removed" || s.reason === "banned" || s.reason === "signed-out";
  const title = s.reason === "removed" ? t.after.removed(s.by) : s.reason === "banned" ? t.after.banned(s.by) : t.after[s.reason];
  const to = (where: Parameters<typeof go>[0]) => {
    app.patch({ after: undefined });
    go(where);
  };
  return (
    <main class="center">
      <section class="card after" data-testid="after" data-reason={s.reason}>
        <Mark size={40} />
        <h1 ref={heading} tabIndex={-1}>
          {title}
        </h1>
        <p class="lead">{s.roomName}</p>
        {s.text && <p>{t.after.reason(s.text)}</p>}
        {names.length > 0 && (
          <p class="after-faces">
            {s.people.slice(0, 8).map((id, i) => (
              <Face key={id} id={id} name={names[i]!} size={40} />
            ))}
          </p>
        )}
        <p>
          {s.seconds > 0 ? t.after.lasted(clock(s.seconds)) : t.after.never} {names.length > 0 ? t.after.with(names) : t.after.alone}
        </p>
        {s.good !== undefined && s.seconds > 5 && <p class="muted">{t.after.quality(s.good)}</p>}
        <div class="stack">
          {!out && (
            <Button kind="primary" icon="phone" class="wide" onClick={() => to({ at: "call", room: s.roomId, via: [], guest: false })} data-testid="after-rejoin">
              {t.after.rejoin}
            </Button>
          )}
          {!out && !session?.guest && (
            <Button class="wide" onClick={() => to({ at: "room", room: s.roomId, via: [] })} data-testid="after-room">
              {t.after.toRoom}
            </Button>
          )}
          <Button kind={out ? "primary" : "ghost"} class="wide" onClick={() => to({ at: "home" })} data-testid="after-home">
            {t.after.home}
          </Button>
        </div>
      </section>
    </main>
  );
}
