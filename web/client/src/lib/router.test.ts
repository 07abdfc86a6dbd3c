import { describe, expect, it } from "vitest";
import { formatRoute, parseRoute, type Route } from "./router.ts";

describe("routes", () => {
  const cases: [string, Route][] = [
    ["/", { at: "home" }],
    ["/login", { at: "login" }],
    ["/register", { at: "register" }],
    ["/room/!abc%3Aexample.org", { at: "room", room: "!abc:example.org", via: [] }],
    ["/room/%23lobby%3Aexample.org", { at: "room", room: "#lobby:example.org", via: [] }],
    [
      "/call/!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM?via=example.org&guest",
      { at: "call", room: "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", via: ["example.org"], guest: true },
    ],
  ];
  for (const [url, want] of cases) {
    it(`reads and writes ${url}`, () => {
      const [path, query] = url.split("?");
      expect(parseRoute(path!, query ?? "")).toEqual(want);
      expect(parseRoute(...(formatRoute(want).split("?") as [string, string]))).toEqual(want);
    });
  }

  it("sends anything else home", () => {
    for (const path of ["/nowhere", "/room", "/room/abc", "/call/%", "/room/!", `/room/!${"x".repeat(300)}`]) {
      expect(parseRoute(path, "")).toEqual({ at: "home" });
    }
  });

  it("takes guest= with or without a value", () => {
    expect(parseRoute("/call/!a:b", "guest=1")).toMatchObject({ guest: true });
    expect(parseRoute("/call/!a:b", "")).toMatchObject({ guest: false });
  });
});
