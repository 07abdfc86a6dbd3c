import { describe, expect, it } from "vitest";
import { readConfig, registrationFrom } from "./config.ts";

describe("config.json", () => {
  it("falls back to the page's own origin", () => {
    for (const raw of [undefined, null, "x", {}, { homeserver_base_url: 7 }, { homeserver_base_url: "javascript:x" }]) {
      expect(readConfig(raw, "http://127.0.0.1:8008")).toEqual({ baseUrl: "http://127.0.0.1:8008" });
    }
  });

  it("takes the address and name, without a trailing slash", () => {
    expect(readConfig({ homeserver_base_url: "https://m.example.org/", server_name: "example.org" }, "x")).toEqual({
      baseUrl: "https://m.example.org",
      serverName: "example.org",
    });
  });
});

describe("registration", () => {
  it("is read from the flows", () => {
    const flows = (...stages: string[][]) => ({ flows: stages.map((s) => ({ stages: s })) });
    expect(registrationFrom(401, flows(["m.login.dummy"]))).toBe("open");
    expect(registrationFrom(401, flows(["m.login.registration_token"]))).toBe("token");
    expect(registrationFrom(401, flows(["m.login.registration_token", "m.login.dummy"]))).toBe("token");
    expect(registrationFrom(401, flows(["m.login.recaptcha"]))).toBe("closed");
    expect(registrationFrom(403, {})).toBe("closed");
    expect(registrationFrom(429, {})).toBe("unknown");
    expect(registrationFrom(401, null)).toBe("unknown");
  });
});
