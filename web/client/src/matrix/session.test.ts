import { describe, expect, it } from "vitest";
import { nextStage } from "./session.ts";

describe("registration stages", () => {
  const flows = [{ stages: ["m.login.registration_token", "m.login.dummy"] }];

  it("does the dummy stage by itself", () => {
    expect(nextStage({ session: "s", flows: [{ stages: ["m.login.dummy"] }] })).toEqual({
      session: "s",
      type: "m.login.dummy",
    });
  });

  it("gives the token first, then goes on", () => {
    expect(nextStage({ session: "s", flows }, "tok")).toEqual({
      session: "s",
      type: "m.login.registration_token",
      token: "tok",
    });
    expect(nextStage({ session: "s", flows, completed: ["m.login.registration_token"] }, "tok")).toEqual({
      session: "s",
      type: "m.login.dummy",
    });
  });

  it("gives up on what it cannot do", () => {
    expect(nextStage({ session: "s", flows })).toBeUndefined();
    expect(nextStage({ session: "s", flows: [{ stages: ["m.login.recaptcha"] }] })).toBeUndefined();
    expect(nextStage({ session: "s", flows, errcode: "M_UNAUTHORIZED" }, "wrong")).toBeUndefined();
    expect(nextStage({}, "x")).toBeUndefined();
  });
});
