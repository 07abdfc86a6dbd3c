import { EventType, MsgType, type MatrixEvent, type Room } from "matrix-js-sdk";
import { dayKey } from "../lib/format.ts";

/** One line of a room's timeline, ready to be drawn. */
export type Item =
  | {
      kind: "message";
      id: string;
      sender: string;
      ts: number;
      body: string;
      tone: "text" | "emote" | "notice" | "file" | "gone" | "undecryptable";
      edited: boolean;
      status: "sent" | "sending" | "failed";
      /** Follows another message of the same person closely: no name needed. */
      joined: boolean;
    }
  | { kind: "note"; id: string; ts: number; note: Note }
  | { kind: "day"; id: string; ts: number };

/** Something that happened in a room, other than a message. */
export interface Note {
  what: "joined" | "left" | "removed" | "banned" | "invited" | "renamed" | "created" | "encrypted" | "call";
  who: string;
  whom?: string;
  text?: string;
}

/** What this file needs of an event; MatrixEvent has all of it. */
export type EventLike = Pick<
  MatrixEvent,
  "getId" | "getSender" | "getTs" | "getType" | "getContent" | "getPrevContent" | "getStateKey" | "isRedacted" | "isRelation" | "isDecryptionFailure"
> & { status: string | null; replacingEventId?: () => string | undefined };

const CLOSE_MS = 5 * 60_000;
const MAX_BODY = 20_000;

/** buildTimeline turns events, oldest first, into lines. */
export function buildTimeline(events: EventLike[]): Item[] {
  const items: Item[] = [];
  let day = "";
  for (const ev of events) {
    const item = toItem(ev);
    if (!item) continue;
    const key = dayKey(item.ts);
    if (key !== day) {
      day = key;
      items.push({ kind: "day", id: `day-${key}`, ts: item.ts });
    }
    const before = items[items.length - 1];
    if (
      item.kind === "message" &&
      before?.kind === "message" &&
      before.sender === item.sender &&
      before.tone !== "emote" &&
      item.tone !== "emote" &&
      item.ts - before.ts < CLOSE_MS
    ) {
      item.joined = true;
    }
    items.push(item);
  }
  return items;
}

function toItem(ev: EventLike): Exclude<Item, { kind: "day" }> | undefined {
  const id = ev.getId() ?? "";
  const sender = ev.getSender() ?? "";
  const ts = ev.getTs();
  const content = ev.getContent() as Record<string, unknown>;
  const message = (body: string, tone: Extract<Item, { kind: "message" }>["tone"]): Item & { kind: "message" } => ({
    kind: "message",
    id,
    sender,
    ts,
    body: body.slice(0, MAX_BODY),
    tone,
    edited: !!ev.replacingEventId?.(),
    status: ev.status === "not_sent" ? "failed" : ev.status !== null && ev.status !== "sent" ? "sending" : "sent",
    joined: false,
  });
  const note = (n: Omit<Note, "who">): Item & { kind: "note" } => ({ kind: "note", id, ts, note: { who: sender, ...n } });

  switch (ev.getType()) {
    case EventType.RoomMessage: {
      if (ev.isRedacted()) return message("", "gone");
      if (ev.isRelation("m.replace")) return undefined;
      if (ev.isDecryptionFailure()) return message("", "undecryptable");
      const body = typeof content.body === "string" ? content.body : "";
      switch (content.msgtype) {
        case MsgType.Emote:
          return message(body, "emote");
        case MsgType.Notice:
          return message(body, "notice");
        case MsgType.Image:
        case MsgType.Video:
        case MsgType.Audio:
        case MsgType.File:
          return message(typeof content.filename === "string" ? content.filename : body, "file");
        default:
          return body === "" ? undefined : message(body, "text");
      }
    }
    case EventType.RoomMessageEncrypted:
      if (ev.isRedacted()) return message("", "gone");
      return ev.isDecryptionFailure() ? message("", "undecryptable") : undefined;
    case EventType.RoomMember: {
      const whom = ev.getStateKey() ?? "";
      const was = (ev.getPrevContent() as { membership?: string } | undefined)?.membership;
      const now = content.membership;
      if (now === was) return undefined;
      if (now === "join") return { kind: "note", id, ts, note: { what: "joined", who: whom } };
      if (now === "invite") return note({ what: "invited", whom });
      if (now === "ban") return note({ what: "banned", whom });
      if (now === "leave") return whom === sender ? note({ what: "left" }) : note({ what: "removed", whom });
      return undefined;
    }
    case EventType.RoomName:
      return note({ what: "renamed", text: typeof content.name === "string" ? content.name : "" });
    case EventType.RoomCreate:
      return note({ what: "created" });
    case EventType.RoomEncryption:
      return note({ what: "encrypted" });
    case "org.matrix.msc4075.rtc.notification":
      return note({ what: "call" });
    default:
      return undefined;
  }
}

/** timelineOf reads a room's loaded timeline. */
export function timelineOf(room: Room): Item[] {
  return buildTimeline(room.getLiveTimeline().getEvents() as unknown as EventLike[]);
}

/** preview is the last thing said in a room, for the list. */
export function preview(room: Room): { sender: string; body: string; ts: number } | undefined {
  const events = room.getLiveTimeline().getEvents();
  for (let i = events.length - 1; i >= 0; i--) {
    const item = toItem(events[i] as unknown as EventLike);
    if (item?.kind === "message" && item.body !== "") return { sender: item.sender, body: item.body, ts: item.ts };
  }
  return undefined;
}
