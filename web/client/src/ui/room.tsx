import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Direction, KnownMembership, MsgType, type MatrixEvent, type Room, type RoomMember } from "matrix-js-sdk";
import { explain, useMatrix, waitForRoom } from "../app.ts";
import { dayName, timeOfDay } from "../lib/format.ts";
import { go } from "../lib/router.ts";
import { accessOf, callLink, callMembers, isUserId, may, mayInvite, nameOf } from "../matrix/rooms.ts";
import { timelineOf, type Item } from "../matrix/timeline.ts";
import { spacedPin } from "../phone/api.ts";
import { t } from "../strings/en.ts";
import { useSubmit } from "./door.tsx";
import { Icon } from "./icons.tsx";
import { useSummary } from "./lobby.tsx";
import { Ask, Button, CopyButton, Face, Faces, Field, IconButton, Sheet } from "./parts.tsx";
import { PhonePanel, useRoomPhones, Waiting } from "./phone.tsx";

/** RoomView is one room: its head, its timeline, and on demand its members. */
export function RoomView({ room }: { room: Room }): JSX.Element {
  const client = useMatrix();
  const [sheet, setSheet] = useState<"members" | "phone">();
  const [found, look] = useRoomPhones(room);
  const line = found?.pin ? found.numbers[0] : undefined;
  const toggle = (which: "members" | "phone") => setSheet(sheet === which ? undefined : which);
  const encrypted = room.hasEncryptionStateEvent();
  const inside = callMembers(client, room).map((id) => ({ id, name: nameOf(room, id) }));
  const enter = () => go({ at: "call", room: room.roomId, via: [], guest: false });
  useEffect(() => {
    document.title = `${room.name} · ${t.app}`;
  }, [room.name]);
  return (
    <div class="room">
      <header class="room-head">
        <IconButton class="only-narrow" icon="back" label={t.back} onClick={() => go({ at: "home" })} />
        <div class="room-title">
          <h1>{room.name}</h1>
          <small>
            <span class={encrypted ? "live" : ""} data-testid="room-encryption" data-encrypted={encrypted}>
              <Icon name={encrypted ? "lock" : "unlock"} size={14} /> {encrypted ? t.room.encrypted : t.room.notEncrypted}
            </span>
            {accessOf(room) === "anyone" && <span class="wide-only"> · {t.room.anyone}</span>}
            {line && (
              <span class="wide-only phone-line" data-testid="room-line">
                {" "}
                · <Icon name="phone" size={14} /> {t.phone.inHead(line.display, spacedPin(found!.pin))}
              </span>
            )}
          </small>
        </div>
        <div class="head-actions">
          <span class="wide-only">
            <CopyButton kind="ghost" label={t.room.copyLink} done={t.room.linkCopied} text={() => callLink(client, room, location.origin)} testId="copy-link" />
          </span>
          {found && (
            <button type="button" class="button ghost phone-mark" aria-label={t.phone.title} title={t.phone.title} aria-expanded={sheet === "phone"} onClick={() => toggle("phone")} data-testid="room-phone">
              <Icon name="keypad" size={20} />
              {found.waiting.length > 0 && found.mayAdmit && <span class="badge">{found.waiting.length}</span>}
            </button>
          )}
          <button type="button" class="button ghost" aria-label={`${t.room.showMembers}: ${room.getJoinedMemberCount()}`} aria-expanded={sheet === "members"} onClick={() => toggle("members")} data-testid="members">
            <Icon name="people" size={20} />
            {room.getJoinedMemberCount()}
          </button>
          {inside.length > 0 ? (
            <Button kind="primary" icon="phone" onClick={enter} aria-label={t.room.join} data-testid="call-join">
              <span class="wide-only">{t.room.join}</span>
              <span class="only-narrow-inline">{t.room.joinShort}</span>
            </Button>
          ) : (
            <Button kind="primary" icon="phone" onClick={enter} aria-label={t.room.start} data-testid="call-start">
              <span class="wide-only">{t.room.start}</span>
              <span class="only-narrow-inline">{t.room.startShort}</span>
            </Button>
          )}
        </div>
      </header>
      {inside.length > 0 && (
        <div class="call-banner" data-testid="call-banner">
          <Faces people={inside} max={4} size={28} />
          <span>{t.room.callNow(inside.map((p) => (p.id === client.getUserId() ? t.you : p.name)))}</span>
        </div>
      )}
      <div class="room-body">
        <Chat room={room} />
        {sheet === "phone" && found && (
          <Sheet title={t.phone.title} onClose={() => setSheet(undefined)} testId="phone-sheet">
            {found.mayAdmit && <Waiting legs={found.waiting} onDone={look} />}
            <PhonePanel room={room} found={found} look={look} />
          </Sheet>
        )}
        {sheet === "members" && (
          <Sheet title={t.room.members(room.getJoinedMemberCount())} onClose={() => setSheet(undefined)} testId="members-sheet">
            <Members room={room} />
          </Sheet>
        )}
      </div>
    </div>
  );
}

/** RoomEntry is shown for a room that one is not in: an invitation or a link. */
export function RoomEntry({ name, room, via }: { name: string; room: Room | undefined; via: string[] }): JSX.Element {
  const client = useMatrix();
  const me = client.getSafeUserId();
  const invited = room?.getMyMembership() === KnownMembership.Invite;
  const inviter = invited ? room.getMember(me)?.events.member?.getSender() : undefined;
  const summary = useSummary(client, room ? undefined : name, via);
  const title = room?.name ?? summary?.name ?? (name.startsWith("#") ? name : t.room.unknown);
  const accept = useSubmit(async () => {
    const joined = await client.joinRoom(room?.roomId ?? name, { viaServers: via });
    await waitForRoom(client, joined.roomId);
    go({ at: "room", room: joined.roomId, via: [] }, true);
  });
  const decline = useSubmit(async () => {
    await client.leave(room!.roomId);
    go({ at: "home" }, true);
  });
  return (
    <div class="empty big">
      <Face id={name} name={title} size={72} class="square" />
      <h1>{title}</h1>
      <p>{invited && inviter ? t.room.invitedBy(nameOf(room, inviter)) : t.room.notIn}</p>
      <p class="error" role="alert">
        {accept.error ?? decline.error}
      </p>
      <div class="row">
        {invited && (
          <Button onClick={() => decline.submit()} busy={decline.busy} data-testid="invite-decline">
            {t.room.decline}
          </Button>
        )}
        <Button kind="primary" onClick={() => accept.submit()} busy={accept.busy} data-testid="room-join">
          {invited ? t.room.accept : t.room.enter}
        </Button>
      </div>
      <Button class="only-narrow" kind="ghost" onClick={() => go({ at: "home" })}>
        {t.back}
      </Button>
    </div>
  );
}

/** Chat is a room's timeline with the field to write in. It serves the room and the call. */
export function Chat({ room }: { room: Room }): JSX.Element {
  return (
    <div class="chat">
      <Timeline room={room} />
      <Composer room={room} />
    </div>
  );
}

function Timeline({ room }: { room: Room }): JSX.Element {
  const client = useMatrix();
  const box = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const [away, setAway] = useState(false);
  const [loading, setLoading] = useState(false);
  const items = timelineOf(room);
  const last = items[items.length - 1];
  const complete = items.some((i) => i.kind === "note" && i.note.what === "created");
  const more = !complete && room.getLiveTimeline().getPaginationToken(Direction.Backward) !== null;

  useLayoutEffect(() => {
    if (atEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [last?.id, items.length]);

  useEffect(() => {
    if (!atEnd.current || document.visibilityState !== "visible") return;
    const events = room.getLiveTimeline().getEvents();
    let ev: MatrixEvent | undefined;
    for (let i = events.length - 1; i >= 0 && !ev; i--) if (!events[i]!.status && events[i]!.getSender() !== client.getUserId()) ev = events[i];
    if (ev && !room.hasUserReadEvent(client.getSafeUserId(), ev.getId()!)) void client.sendReadReceipt(ev).catch(() => undefined);
  }, [last?.id]);

  const older = async () => {
    if (loading) return;
    setLoading(true);
    const el = box.current;
    const before = el ? el.scrollHeight - el.scrollTop : 0;
    await client.scrollback(room, 40).catch(() => undefined);
    setLoading(false);
    requestAnimationFrame(() => {
      if (el) el.scrollTop = el.scrollHeight - before;
    });
  };

  return (
    <div
      class="timeline"
      ref={box}
      tabIndex={0}
      role="log"
      aria-label={t.room.log}
      onScroll={(e) => {
        const el = e.currentTarget;
        atEnd.current = el.scrollHeight - el.scrollTop - el.clientHeight < 60;
        if (away === atEnd.current) setAway(!atEnd.current);
      }}
    >
      {more ? (
        <div class="older">
          <Button kind="ghost" busy={loading} onClick={() => void older()} data-testid="older">
            {t.room.older}
          </Button>
        </div>
      ) : (
        <p class="older hint">{t.room.beginning}</p>
      )}
      {items.map((item) => (
        <Line key={item.id} item={item} room={room} />
      ))}
      {away && (
        <button
          type="button"
          class="to-end icon-button"
          aria-label={t.room.newest}
          title={t.room.newest}
          onClick={() => {
            atEnd.current = true;
            if (box.current) box.current.scrollTop = box.current.scrollHeight;
          }}
        >
          <Icon name="down" />
        </button>
      )}
    </div>
  );
}

function Line({ item, room }: { item: Item; room: Room }): JSX.Element {
  const client = useMatrix();
  const name = (id: string) => nameOf(room, id);
  if (item.kind === "day") return <p class="day">{dayName(item.ts)}</p>;
  if (item.kind === "note") {
    return (
      <p class="note" data-testid="note-item">
        {t.note(item.note, name)} <time>{timeOfDay(item.ts)}</time>
      </p>
    );
  }
  const who = name(item.sender);
  const mine = item.sender === client.getUserId();
  const resend = () => {
    const ev = room.getPendingEvents?.().find((e) => e.getId() === item.id) ?? room.findEventById(item.id);
    if (ev) void client.resendEvent(ev, room).catch(() => undefined);
  };
  return (
    <article class={`message ${item.joined ? "joined" : ""} ${mine ? "mine" : ""} ${item.tone} ${item.status}`} data-testid="message-item" data-sender={item.sender} data-status={item.status}>
      {item.joined ? <span class="gutter" /> : <Face id={item.sender} name={who} size={36} />}
      <div>
        {!item.joined && (
          <header>
            <b>{who}</b> <time dateTime={new Date(item.ts).toISOString()}>{timeOfDay(item.ts)}</time>
          </header>
        )}
        <p class="body">
          {item.tone === "gone" ? (
            <i>{t.room.gone}</i>
          ) : item.tone === "undecryptable" ? (
            <i>{t.room.undecryptable}</i>
          ) : item.tone === "file" ? (
            <i>{t.room.file(item.body)}</i>
          ) : (
            <Linked text={item.tone === "emote" ? `* ${who} ${item.body}` : item.body} />
          )}
          {item.edited && <small class="muted"> ({t.room.edited})</small>}
          {item.status === "sending" && <small class="muted"> · {t.room.sending}</small>}
        </p>
        {item.status === "failed" && (
          <p class="error">
            <Icon name="warn" size={16} /> {t.room.failed}{" "}
            <button type="button" class="link" onClick={resend}>
              {t.room.resend}
            </button>
          </p>
        )}
      </div>
    </article>
  );
}

/** Linked makes web addresses in a text clickable and leaves everything else as text. */
function Linked({ text }: { text: string }): JSX.Element {
  const parts = text.split(/(https?:\/\/[^\s<>"]+[^\s<>".,;:!?)\]'])/);
  return (
    <>
      {parts.map((p, i) =>
        i % 2 === 1 ? (
          <a key={i} href={p} target="_blank" rel="noopener noreferrer nofollow">
            {p}
          </a>
        ) : (
          p
        ),
      )}
    </>
  );
}

function Composer({ room }: { room: Room }): JSX.Element {
  const client = useMatrix();
  const [text, setText] = useState("");
  const ref = useRef<HTMLTextAreaElement>(null);
  const encrypted = room.hasEncryptionStateEvent();
  const send = () => {
    const body = text.trim();
    if (body === "") return;
    setText("");
    // A failure shows on the message itself, with a way to send it again.
    client.sendMessage(room.roomId, { msgtype: MsgType.Text, body }).catch(() => undefined);
    ref.current?.focus();
  };
  useLayoutEffect(() => {
    const el = ref.current;
    if (!el) return;
    el.style.height = "auto";
    el.style.height = `${Math.min(160, el.scrollHeight)}px`;
  }, [text]);
  return (
    <form
      class="composer"
      onSubmit={(e) => {
        e.preventDefault();
        send();
      }}
    >
      <textarea
        ref={ref}
        rows={1}
        value={text}
        maxLength={20000}
        aria-label={t.room.message}
        placeholder={t.room.messagePlaceholder(encrypted)}
        data-testid="message-input"
        onInput={(e) => setText(e.currentTarget.value)}
        onKeyDown={(e) => {
          if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
            e.preventDefault();
            send();
          }
        }}
      />
      <IconButton type="submit" icon="send" label={t.room.send} class="send" disabled={text.trim() === ""} data-testid="message-send" />
    </form>
  );
}

/** Members lists a room's members with what the reader may do about them. */
export function Members({ room }: { room: Room }): JSX.Element {
  const client = useMatrix();
  const me = client.getSafeUserId();
  const members = room
    .getMembers()
    .filter((m) => m.membership === KnownMembership.Join || m.membership === KnownMembership.Invite)
    .sort((a, b) => Number(b.membership === "join") - Number(a.membership === "join") || b.powerLevel - a.powerLevel || a.name.localeCompare(b.name));
  const leave = useSubmit(async () => {
    await client.leave(room.roomId);
    go({ at: "home" });
  });
  const [asking, setAsking] = useState(false);
  return (
    <>
      {mayInvite(room, me) && <Invite room={room} />}
      <div class="only-narrow stack">
        <CopyButton label={t.room.copyLink} done={t.room.linkCopied} text={() => callLink(client, room, location.origin)} />
      </div>
      <ul class="people-list">
        {members.map((m) => (
          <MemberRow key={m.userId} room={room} member={m} me={me} />
        ))}
      </ul>
      <Button kind="ghost" class="danger-text" onClick={() => setAsking(true)} data-testid="room-leave">
        {t.room.leave}
      </Button>
      {leave.error && (
        <p class="error" role="alert">
          {leave.error}
        </p>
      )}
      {asking && <Ask question={t.room.leaveAsk(room.name)} yes={t.room.leave} onNo={() => setAsking(false)} onYes={() => leave.submit()} />}
    </>
  );
}

function Invite({ room }: { room: Room }): JSX.Element {
  const client = useMatrix();
  const [who, setWho] = useState("");
  const [sent, setSent] = useState<string>();
  const { busy, error, submit } = useSubmit(async () => {
    const id = who.trim();
    if (!isUserId(id)) throw new Error(t.create.inviteBad(id));
    await client.invite(room.roomId, id);
    setWho("");
    setSent(id);
  }, (e) => (e instanceof Error && e.message === t.create.inviteBad(who.trim()) ? e.message : explain(e)));
  return (
    <form class="invite" onSubmit={submit}>
      <Field label={t.room.inviteLabel} placeholder={t.room.invitePlaceholder} value={who} onValue={setWho} error={error} hint={sent ? t.room.inviteSent(sent) : undefined!} spellCheck={false} testId="invite-user" />
      <Button type="submit" busy={busy} disabled={who.trim() === ""} data-testid="invite-submit">
        {t.room.invite}
      </Button>
    </form>
  );
}

function MemberRow({ room, member: m, me }: { room: Room; member: RoomMember; me: string }): JSX.Element {
  const role = !Number.isFinite(m.powerLevel) || m.powerLevel > 100 ? t.room.creator : m.powerLevel >= 100 ? t.room.admin : m.powerLevel >= 50 ? t.room.moderator : undefined;
  const name = nameOf(room, m.userId);
  return (
    <li class="person" data-testid="member" data-user={m.userId}>
      <Face id={m.userId} name={name} />
      <span class="who">
        <b>
          {name}
          {m.userId === me && ` (${t.you})`}
        </b>
        <small>{[m.membership === "invite" ? t.room.pending : undefined, role, m.userId].filter(Boolean).join(" · ")}</small>
      </span>
      <HostActions room={room} member={m} me={me} />
    </li>
  );
}

/** HostActions are the buttons to remove or ban somebody, where one's power allows it. */
export function HostActions({ room, member, me }: { room: Room; member: RoomMember; me: string }): JSX.Element | null {
  const client = useMatrix();
  const [asking, setAsking] = useState<"kick" | "ban">();
  const [error, setError] = useState<string>();
  const name = nameOf(room, member.userId);
  const kick = may(room, "kick", me, member);
  const ban = may(room, "ban", me, member);
  if (!kick && !ban) return null;
  const act = async (what: "kick" | "ban") => {
    setAsking(undefined);
    setError(undefined);
    try {
      await (what === "kick" ? client.kick(room.roomId, member.userId) : client.ban(room.roomId, member.userId));
    } catch (e) {
      setError(explain(e));
    }
  };
  return (
    <span class="host-actions">
      {kick && <IconButton icon="remove" label={t.room.remove(name)} onClick={() => setAsking("kick")} data-testid={`kick-${member.userId}`} />}
      {ban && <IconButton icon="ban" label={t.room.ban(name)} onClick={() => setAsking("ban")} data-testid={`ban-${member.userId}`} />}
      {error && (
        <span class="error" role="alert">
          {error}
        </span>
      )}
      {asking && (
        <Ask
          question={asking === "kick" ? t.room.removeAsk(name) : t.room.banAsk(name)}
          yes={asking === "kick" ? t.room.removeShort : t.room.banShort}
          onNo={() => setAsking(undefined)}
          onYes={() => void act(asking)}
        />
      )}
    </span>
  );
}
