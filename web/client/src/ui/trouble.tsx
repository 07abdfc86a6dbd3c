import { version as livekitVersion } from "livekit-client";
import type { JSX } from "preact";
import type { Call, Phase } from "../call/call.ts";
import { formatDetails, isFinal, type Trouble } from "../call/trouble.ts";
import { t } from "../strings/en.ts";
import { Icon } from "./icons.tsx";
import { Button, CopyButton } from "./parts.tsx";

/** TroublePanel says why there is no media, what to do, and lets one copy the facts. */
export function TroublePanel({ call, trouble, phase }: { call: Call; trouble: Trouble; phase: Phase }): JSX.Element {
  const said = t.trouble.say(trouble);
  const context = () => ({
    phase,
    encrypted: String(call.encrypted),
    time: new Date().toISOString(),
    browser: navigator.userAgent,
    page: `${t.app}, livekit-client ${livekitVersion}`,
  });
  return (
    <section class="trouble card" role="alert" data-testid="trouble" data-path={trouble.path} data-code={trouble.code}>
      <h2>
        <Icon name="warn" size={24} /> {said.title}
      </h2>
      <p>{said.what}</p>
      <p>
        <b>{said.todo}</b>
      </p>
      <p class="code">
        <code data-testid="trouble-code">{trouble.code}</code>
      </p>
      <div class="row">
        <Button kind="primary" onClick={() => void call.retry()} data-testid="trouble-retry">
          {t.retry}
        </Button>
        <CopyButton label={t.trouble.copyDetails} text={() => formatDetails(trouble, context())} testId="trouble-copy" />
        <Button kind="ghost" onClick={() => void call.leave()}>
          {t.trouble.leave}
        </Button>
      </div>
      {!isFinal(trouble.code) && (
        <p class="muted still">
          <i class="spin" /> {t.trouble.still}
        </p>
      )}
    </section>
  );
}
