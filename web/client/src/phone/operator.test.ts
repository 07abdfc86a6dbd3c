import { expect, test } from "vitest";
import { lossPercent, mosWord, readOverview } from "./operator.ts";

test("an answer of the wrong shape is an empty page, not a broken one", () => {
  for (const raw of [undefined, null, 3, "x", [], { trunks: 7, legs: [null, 1], totals: "no" }]) {
    expect(readOverview(raw)).toEqual({ trunks: [], legs: [], records: [], bans: [], callsToday: 0, minutesToday: 0 });
  }
});

test("rows are read field by field", () => {
  const o = readOverview({ trunks: [{ id: "a", up: true, targets: ["sip:x", 3] }], bans: [{ source: "192.0.2.1", until: 5 }], totals: { calls_today: 2 } });
  expect(o.trunks[0]).toMatchObject({ id: "a", up: true, targets: ["sip:x"], problem: "" });
  expect(o.bans[0]).toEqual({ source: "192.0.2.1", why: "", since: 0, until: 5 });
  expect(o.callsToday).toBe(2);
});

test("loss and MOS", () => {
  expect(lossPercent(0, 0)).toBe(0);
  expect(lossPercent(99, 1)).toBeCloseTo(1);
  expect([mosWord(0), mosWord(4.2), mosWord(3.5), mosWord(2)]).toEqual(["unknown", "good", "fair", "poor"]);
});
