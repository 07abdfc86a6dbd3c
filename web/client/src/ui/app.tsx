import type { JSX } from "preact";
import { useApp } from "../app.ts";
import { useRoute } from "../lib/router.ts";
import { t } from "../strings/en.ts";
import { After } from "./after.tsx";
import { CallView } from "./callview.tsx";
import { Door } from "./door.tsx";
import { Hall } from "./hall.tsx";
import { CallEntry } from "./lobby.tsx";
import { Spinner } from "./parts.tsx";

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
  if (route.at === "call") return <CallEntry key={route.room} route={route} />;
  if (state.phase === "door") return <Door />;
  return <Hall />;
}
