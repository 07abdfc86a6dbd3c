import { describe, expect, it } from "vitest";
import { buildTimeline, type EventLike } from "./timeline.ts";

let n = 0;
function event(type: string, content: object, o: Partial<{ sender: string; ts: number; key: string; prev: object; redacted: boolean; relation: string; failed: boolean; status: string }> = {}): EventLike {
  const id = `$${n++}`;
  return {
    getId: () => id,
    getSender: () => o.sender ?? "@mia:x",
    getTs: () => o.ts ?? 1_000_000,
    getType: () => type,
    getContent: <T,>() => content as T,
    getPrevContent: <T,>() => (o.prev ?? {}) as T,
    getStateKey: () => o.key,
    isRedacted: () => o.redacted ?? false,
    isRelation: (t?: string) => o.relation === t,
    isDecryptionFailure: () => o.failed ?? false,
    status: o.status ?? null,
  } as EventLike;
}
const text = (body: string, o = {}) => event("m.room.message", { msgtype: "m.text", body }, o);

describe("buildTimeline", () => {
  it("joins messages of one person that follow closely, and only those", () => {
    const items = buildTimeline([
      text("a"),
      text("b", { ts: 1_060_000 }),
      text("c", { ts: 1_060_000, sender: "@tom:x" }),
      text("d", { ts: 9_060_000, sender: "@tom:x" }),
    ]);
    expect(items.map((i) => i.kind)).toEqual(["day", "message", "message", "message", "message"]);
    expect(items.slice(1).map((i) => i.kind === "message" && i.joined)).toEqual([false, true, false, false]);
  });

  it("puts a divider before each day", () => {
    const day = 86_400_000;
    expect(buildTimeline([text("a"), text("b", { ts: 1_000_000 + 3 * day })]).filter((i) => i.kind === "day")).toHaveLength(2);
  });

  it("says what happened to members", () => {
    const member = (membership: string, o: object) => event("m.room.member", { membership }, o);
    const notes = buildTimeline([
      member("join", { key: "@mia:x" }),
      member("join", { key: "@mia:x", prev: { membership: "join" } }),
      member("leave", { key: "@tom:x" }),
      member("leave", { key: "@mia:x" }),
      member("ban", { key: "@tom:x" }),
      member("invite", { key: "@tom:x" }),
    ])
      .filter((i) => i.kind === "note")
      .map((i) => i.kind === "note" && i.note.what);
    expect(notes).toEqual(["joined", "removed", "left", "banned", "invited"]);
  });

  it("keeps edits out of the list and marks what cannot be read", () => {
    const items = buildTimeline([
      event("m.room.message", { msgtype: "m.text", body: "* new" }, { relation: "m.replace" }),
      event("m.room.encrypted", {}, { failed: true }),
      event("m.room.message", { msgtype: "m.bad.encrypted", body: "** Unable to decrypt" }, { failed: true }),
      event("m.room.message", {}, { redacted: true }),
      event("m.room.message", { msgtype: "m.text", body: 7 }),
      event("m.reaction", {}),
    ]);
    expect(items.slice(1).map((i) => i.kind === "message" && i.tone)).toEqual(["undecryptable", "undecryptable", "gone"]);
  });

  it("tells sending from sent and failed", () => {
    const items = buildTimeline([text("a", { status: "sending" }), text("b", { status: "not_sent" }), text("c", { status: "sent" })]);
    expect(items.slice(1).map((i) => i.kind === "message" && i.status)).toEqual(["sending", "failed", "sent"]);
  });

  it("cuts a body that would freeze the page", () => {
    const [, m] = buildTimeline([text("x".repeat(100_000))]);
    expect(m?.kind === "message" && m.body.length).toBe(20_000);
  });
});
