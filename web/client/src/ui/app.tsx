import type { JSX } from "preact";
import { useApp, useHere } from "../app.ts";
import { useRoute } from "../lib/router.ts";
import { t } from "../strings/en.ts";
import { After } from "./after.tsx";
import { CallView } from "./callview.tsx";
import { Door } from "./door.tsx";
import { Hall } from "./hall.tsx";
import { CallEntry } from "./lobby.tsx";
import { Mark } from "./icons.tsx";
import { Operator } from "./operator.tsx";
import { Button, Spinner } from "./parts.tsx";

/** App chooses the screen: what is going on counts before what the address says. */
export function App(): JSX.Element {
  const state = useApp();
  const route = useRoute();
  if (state.call) return <CallView key={state.call.room.roomId} call={state.call} />;
  if (state.after) return <After summary={state.after} />;
  if (state.phase === "starting") {
    return (
      <main class="center">
        <Spinner label={t.loading} />
      </main>
    );
  }
  if (state.phase === "elsewhere") return <Elsewhere />;
  if (route.at === "call") return <CallEntry key={route.room} route={route} />;
  if (state.phase === "door") return <Door />;
  if (route.at === "operator") return <Operator />;
  return <Hall />;
}

/** Elsewhere is shown while another window of this browser uses the session. */
function Elsewhere(): JSX.Element {
  return (
    <main class="center">
      <section class="card after" data-testid="elsewhere">
        <Mark size={40} />
        <h1>{t.elsewhere.title}</h1>
        <p>{t.elsewhere.why}</p>
        <Button kind="primary" class="wide" onClick={() => void useHere()} data-testid="use-here">
          {t.elsewhere.here}
        </Button>
      </section>
    </main>
  );
}
