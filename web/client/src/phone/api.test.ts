import { expect, test } from "vitest";
import { dialable, readLeg, readRoomPhones, spacedPin } from "./api.ts";

test("a leg with nothing in it is new, and strange states are not believed", () => {
  expect(readLeg(undefined)).toMatchObject({ id: "", state: "new", number: "", held: false, stats: { mos: 0 } });
  expect(readLeg({ state: "exploded", code: "486", stats: { lost: "many" } })).toMatchObject({ state: "new", code: 0, stats: { lost: 0 } });
  expect(readLeg({ id: "SCL_1", state: "ended", cause: "busy", code: 486 })).toMatchObject({ id: "SCL_1", state: "ended", cause: "busy", code: 486 });
});

test("what a room's telephones are allowed is no unless the server says yes", () => {
  expect(readRoomPhones({ may_dial: "yes", e2ee: "perhaps", numbers: [{}, { number: "+4930123" }] })).toMatchObject({
    mayDial: false,
    mayChange: false,
    e2ee: "deny",
    numbers: [{ number: "+4930123", display: "+4930123" }],
  });
});

test("a PIN is grouped for reading aloud", () => {
  expect(spacedPin("123456")).toBe("123 456");
  expect(spacedPin("12345678")).toBe("1234 5678");
  expect(spacedPin("1234567")).toBe("123 456 7");
  expect(spacedPin("")).toBe("");
});

test("only what a telephone number may have can be dialled", () => {
  expect(dialable("tel:+49 (30) 123-45<b>;x=1")).toBe("+49 (30) 123-45");
  expect(dialable("*".repeat(90))).toHaveLength(40);
});
