import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { MatrixClient, Room } from "matrix-js-sdk";
import { findRoom, signOut, useApp, useMatrix, waitForRoom } from "../app.ts";
import { localpart } from "../lib/format.ts";
import { go, useRoute } from "../lib/router.ts";
import { callMembers, isUserId, nameOf, roomOptions, unread, visibleRooms, type Access } from "../matrix/rooms.ts";
import { preview } from "../matrix/timeline.ts";
import { t } from "../strings/en.ts";
import { useSubmit } from "./door.tsx";
import { Icon, Mark } from "./icons.tsx";
import { Ask, Button, Dialog, Face, Faces, Field, IconButton } from "./parts.tsx";
import { RoomEntry, RoomView } from "./room.tsx";

/** Hall shows the rooms and the one that is open. On a phone it shows one of both. */
export function Hall(): JSX.Element {
  const { online, session } = useApp();
  const client = useMatrix();
  const route = useRoute();
  const [creating, setCreating] = useState(false);
  const [leaving, setLeaving] = useState(false);
  const [account, setAccount] = useState(false);
  const rooms = visibleRooms(client);
  const name = route.at === "room" ? route.room : undefined;
  const room = name === undefined ? undefined : findRoom(client, name);
  const me = client.getSafeUserId();
  const own = client.getUser(me)?.displayName;
  const ownName = own && own !== me ? own : localpart(me);
  useEffect(() => {
    if (!room) document.title = t.app;
  }, [room]);
  return (
    <div class={`hall ${name === undefined ? "at-list" : "at-room"}`}>
      <nav class="rooms" aria-label={t.hall.rooms}>
        <header>
          <a
            class="brand"
            href="/"
            onClick={(e) => {
              e.preventDefault();
              go({ at: "home" });
            }}
          >
            <Mark size={28} />
            <span>{t.app}</span>
          </a>
          {!session?.guest && <IconButton icon="plus" label={t.hall.newRoom} onClick={() => setCreating(true)} data-testid="room-create" />}
        </header>
        {!online && (
          <p class="offline" role="status">
            <Icon name="warn" size={16} /> {t.hall.offline}
          </p>
        )}
        {rooms.length === 0 ? (
          <div class="empty">
            <p>{t.hall.none}</p>
            {!session?.guest && (
              <>
                <p class="muted">{t.hall.noneHint}</p>
                <Button kind="primary" icon="plus" onClick={() => setCreating(true)}>
                  {t.hall.newRoom}
                </Button>
              </>
            )}
          </div>
        ) : (
          <ul>
            {rooms.map((r) => (
              <RoomRow key={r.roomId} client={client} room={r} current={r === room} />
            ))}
          </ul>
        )}
        <footer>
          <button type="button" class="account" aria-label={t.hall.account} title={t.hall.signedInAs(me)} onClick={() => setAccount(true)} data-testid="account">
            <Face id={me} name={ownName} size={32} />
            <span class="who">
              <b>{ownName}</b>
              <small data-testid="own-user-id">{session?.guest ? t.guest : me}</small>
            </span>
          </button>
          <IconButton icon="signOut" label={t.hall.signOut} onClick={() => setLeaving(true)} data-testid="sign-out" />
        </footer>
      </nav>
      <main class="room-pane">
        {name === undefined ? (
          <div class="empty big">
            <Mark size={56} />
            <h1 class="unseen">{t.hall.rooms}</h1>
            <p>{t.hall.pick}</p>
          </div>
        ) : room && room.getMyMembership() === "join" ? (
          <RoomView key={room.roomId} room={room} />
        ) : (
          <RoomEntry key={name} name={name} room={room} via={route.at === "room" ? route.via : []} />
        )}
      </main>
      {creating && <CreateRoom client={client} onClose={() => setCreating(false)} />}
      {account && <Account client={client} name={ownName} onClose={() => setAccount(false)} />}
      {leaving && <Ask question={t.hall.signOutAsk} yes={t.hall.signOut} onNo={() => setLeaving(false)} onYes={() => void signOut()} />}
    </div>
  );
}

/** Account is where one changes how the others see one's name. */
function Account({ client, name, onClose }: { client: MatrixClient; name: string; onClose: () => void }): JSX.Element {
  const [value, setValue] = useState(name);
  const { busy, error, submit } = useSubmit(async () => {
    await client.setDisplayName(value.trim());
    onClose();
  });
  return (
    <Dialog title={t.hall.account} onClose={onClose}>
      <form onSubmit={submit}>
        <Field label={t.lobby.name} hint={t.lobby.nameHint} value={value} onValue={setValue} maxLength={80} required testId="account-name" />
        <p class="error form-error" role="alert">
          {error}
        </p>
        <div class="row end">
          <Button onClick={onClose}>{t.cancel}</Button>
          <Button type="submit" kind="primary" busy={busy} disabled={value.trim() === ""} data-testid="account-save">
            {t.hall.save}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

function RoomRow({ client, room, current }: { client: MatrixClient; room: Room; current: boolean }): JSX.Element {
  const invited = room.getMyMembership() === "invite";
  const inside = invited ? [] : callMembers(client, room).map((id) => ({ id, name: nameOf(room, id) }));
  const last = invited ? undefined : preview(room);
  const n = unread(room);
  return (
    <li>
      <a
        href={`/room/${encodeURIComponent(room.roomId)}`}
        class={`room-row ${n > 0 ? "unread" : ""}`}
        aria-current={current ? "page" : undefined}
        data-testid="room-item"
        data-room-id={room.roomId}
        onClick={(e) => {
          e.preventDefault();
          go({ at: "room", room: room.roomId, via: [] });
        }}
      >
        <Face id={room.roomId} name={room.name} size={40} class="square" />
        <span class="row-text">
          <b>{room.name}</b>
          <small>{invited ? t.hall.invited : last ? t.hall.sent(last.sender === client.getUserId() ? t.you : nameOf(room, last.sender), last.body) : " "}</small>
        </span>
        {inside.length > 0 && (
          <span class="in-call" role="img" aria-label={t.hall.inCall(inside.map((p) => p.name))} title={t.hall.inCall(inside.map((p) => p.name))} data-testid="room-in-call">
            <Icon name="phone" size={14} />
            <Faces people={inside} size={22} />
          </span>
        )}
        {(n > 0 || invited) && (
          <span class="badge" aria-label={invited ? t.hall.invited : t.hall.unread(n)}>
            {invited ? "!" : n > 99 ? "99+" : n}
          </span>
        )}
      </a>
    </li>
  );
}

function CreateRoom({ client, onClose }: { client: MatrixClient; onClose: () => void }): JSX.Element {
  const [name, setName] = useState("");
  const [access, setAccess] = useState<Access>("members");
  const [encrypted, setEncrypted] = useState(true);
  const [invite, setInvite] = useState("");
  const ids = invite.split(/[\s,;]+/).filter((s) => s !== "");
  const bad = ids.find((s) => !isUserId(s));
  const { busy, error, submit } = useSubmit(async () => {
    if (bad !== undefined) return;
    const { room_id } = await client.createRoom(roomOptions({ name, encrypted, access, invite: ids }));
    await waitForRoom(client, room_id);
    onClose();
    go({ at: "room", room: room_id, via: [] });
  });
  return (
    <Dialog title={t.create.title} onClose={onClose} testId="room-dialog">
      <form onSubmit={submit}>
        <Field label={t.create.name} placeholder={t.create.namePlaceholder} value={name} onValue={setName} required autoFocus maxLength={200} testId="room-name" />
        <fieldset>
          <legend>{t.create.link}</legend>
          <Choice name="access" checked={access === "members"} onPick={() => setAccess("members")} label={t.create.members} hint={t.create.membersHint} testId="room-access-members" />
          <Choice name="access" checked={access === "anyone"} onPick={() => setAccess("anyone")} label={t.create.anyone} hint={t.create.anyoneHint} testId="room-access-anyone" />
        </fieldset>
        <label class="choice">
          <input type="checkbox" checked={encrypted} onChange={(e) => setEncrypted(e.currentTarget.checked)} data-testid="room-encrypted" />
          <span>
            <b>{t.create.encrypted}</b>
            <small>{t.create.encryptedHint}</small>
          </span>
        </label>
        <Field label={t.create.invite} hint={t.create.inviteHint} value={invite} onValue={setInvite} error={bad !== undefined && invite.endsWith(" ") ? t.create.inviteBad(bad) : undefined} spellCheck={false} testId="room-invite" />
        <p class="error form-error" role="alert">
          {bad !== undefined && error === undefined && busy ? t.create.inviteBad(bad) : error}
        </p>
        <div class="row end">
          <Button onClick={onClose}>{t.cancel}</Button>
          <Button type="submit" kind="primary" busy={busy} disabled={name.trim() === "" || bad !== undefined} data-testid="room-create-submit">
            {t.create.submit}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

function Choice({ name, checked, onPick, label, hint, testId }: { name: string; checked: boolean; onPick: () => void; label: string; hint: string; testId: string }): JSX.Element {
  return (
    <label class="choice">
      <input type="radio" name={name} checked={checked} onChange={onPick} data-testid={testId} />
      <span>
        <b>{label}</b>
        <small>{hint}</small>
      </span>
    </label>
  );
}
