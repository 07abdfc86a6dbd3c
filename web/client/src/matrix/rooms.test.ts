import { describe, expect, it } from "vitest";
import { isUserId, roomOptions, viaServers, CALL_MEMBER } from "./rooms.ts";

function state(opts: ReturnType<typeof roomOptions>, type: string): Record<string, unknown> | undefined {
  return opts.initial_state?.find((e) => e.type === type)?.content as Record<string, unknown> | undefined;
}

describe("roomOptions", () => {
  it("makes an encrypted room for members by default", () => {
    const o = roomOptions({ name: " Standup ", encrypted: true, access: "members", invite: ["@tom:x"] });
    expect(o.name).toBe("Standup");
    expect(state(o, "m.room.encryption")).toEqual({ algorithm: "m.megolm.v1.aes-sha2" });
    expect(state(o, "m.room.join_rules")).toEqual({ join_rule: "invite" });
    expect(state(o, "m.room.guest_access")).toEqual({ guest_access: "forbidden" });
    expect(o.visibility).toBe("private");
    expect(o.invite).toEqual(["@tom:x"]);
  });

  it("opens a link for anyone without listing the room or its past", () => {
    const o = roomOptions({ name: "Open", encrypted: true, access: "anyone", invite: [] });
    expect(state(o, "m.room.join_rules")).toEqual({ join_rule: "public" });
    expect(state(o, "m.room.guest_access")).toEqual({ guest_access: "can_join" });
    expect(state(o, "m.room.history_visibility")).toEqual({ history_visibility: "joined" });
    expect(o.visibility).toBe("private");
  });

  it("leaves encryption out when it is unticked", () => {
    expect(state(roomOptions({ name: "x", encrypted: false, access: "members", invite: [] }), "m.room.encryption")).toBeUndefined();
  });

  it("lets everybody enter the call", () => {
    const o = roomOptions({ name: "x", encrypted: true, access: "members", invite: [] });
    expect(o.power_level_content_override?.events?.[CALL_MEMBER]).toBe(0);
  });
});

describe("viaServers", () => {
  it("names the own server first and no more than three", () => {
    const members = ["a", "b", "c", "d"].map((s) => ({ userId: `@u:${s}`, powerLevel: s === "d" ? 100 : 0 }));
    expect(viaServers(members, "c")).toEqual(["c", "d", "a"]);
    expect(viaServers(members, "elsewhere")).toEqual(["d", "a", "b"]);
    expect(viaServers([{ userId: "nonsense", powerLevel: 0 }], null)).toEqual([]);
  });

  it("keeps ports", () => {
    expect(viaServers([{ userId: "@a:localhost:8008", powerLevel: 0 }], null)).toEqual(["localhost:8008"]);
  });
});

describe("isUserId", () => {
  it("knows a user ID when it sees one", () => {
    expect(["@a:b", "@tom.k:example.org:8448"].every(isUserId)).toBe(true);
    expect(["a:b", "@ab", "@a b:c", "", "@:"].some(isUserId)).toBe(false);
  });
});
