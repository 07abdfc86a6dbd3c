import { describe, expect, it } from "vitest";
import { clock, hue, initials, localpart } from "./format.ts";

describe("format", () => {
  it("finds initials in all sorts of names", () => {
    expect(initials("Mia Berg")).toBe("MB");
    expect(initials("mia")).toBe("M");
    expect(initials("@mia:example.org")).toBe("MO");
    expect(initials("Jean-Luc Picard")).toBe("JP");
    expect(initials("田中 さくら")).toBe("田さ");
    expect(initials("🎉")).toBe("?");
    expect(initials("")).toBe("?");
  });

  it("keeps a name's colour", () => {
    expect(hue("mia")).toBe(hue("mia"));
    expect(hue("mia")).not.toBe(hue("tom"));
  });

  it("writes call times", () => {
    expect([0, 7, 754, 3723, -5].map(clock)).toEqual(["0:00", "0:07", "12:34", "1:02:03", "0:00"]);
  });

  it("shortens user IDs", () => {
    expect(localpart("@mia:example.org")).toBe("mia");
    expect(localpart("mia")).toBe("mia");
  });
});
