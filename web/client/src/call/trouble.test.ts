import { describe, expect, it } from "vitest";
import { diagnose, formatDetails, isFinal, readIce, routeOf, type Evidence } from "./trouble.ts";

const ok: Evidence = {
  serverReachable: true,
  signalOpen: true,
  ice: { state: "checking", local: ["host/udp"], remote: ["host/udp"] },
};

describe("diagnose", () => {
  const cases: [string, Partial<Evidence>, string, string][] = [
    ["no server", { serverReachable: false, signalOpen: false }, "server", "SERVER_UNREACHABLE"],
    ["no transport", { setup: { step: "transports", code: "NO_TRANSPORT", message: "" } }, "transports", "NO_TRANSPORT"],
    ["no token", { setup: { step: "token", code: "M_FORBIDDEN", message: "" } }, "token", "M_FORBIDDEN"],
    ["not let into the call", { membership: "M_FORBIDDEN" }, "membership", "MEMBERSHIP_FAILED"],
    ["no WebSocket", { signalOpen: false }, "signal", "SIGNAL_TIMEOUT"],
    ["WebSocket refused", { signalOpen: false, signalError: "503" }, "signal", "SIGNAL_REFUSED"],
    ["media server without addresses", { ice: { state: "new", local: [], remote: [] } }, "media", "ICE_NO_CANDIDATES"],
    ["UDP blocked", { relays: { udp: "failed", tcp: "ok", tls: "untested" } }, "media", "ICE_UDP_BLOCKED"],
    ["everything blocked", { relays: { udp: "failed", tcp: "failed", tls: "untested" } }, "media", "ICE_ALL_PATHS_FAILED"],
    ["checks never answered", {}, "media", "ICE_CHECKING"],
  ];
  for (const [name, part, path, code] of cases) {
    it(name, () => {
      const t = diagnose({ ...ok, ...part });
      expect([t.path, t.code]).toEqual([path, code]);
    });
  }
});

describe("readIce", () => {
  const stats = [
    { type: "local-candidate", id: "l1", candidateType: "host", protocol: "udp" },
    { type: "local-candidate", id: "l2", candidateType: "relay", protocol: "udp", relayProtocol: "tcp" },
    { type: "remote-candidate", id: "r1", candidateType: "host", protocol: "udp" },
    { type: "candidate-pair", id: "p", localCandidateId: "l2", remoteCandidateId: "r1", state: "succeeded" },
    { type: "transport", id: "t", selectedCandidatePairId: "p" },
  ];

  it("finds the pair in use", () => {
    const r = readIce(stats, "connected");
    expect(r.selected).toBe("relay/tcp -> host/udp");
    expect(routeOf(r)).toBe("relay-tcp");
    expect(r.local).toEqual(["host/udp", "relay/tcp"]);
  });

  it("knows when there is none", () => {
    expect(readIce(stats.slice(0, 3), "checking").selected).toBeUndefined();
    expect(routeOf(readIce([], "new"))).toBeUndefined();
  });
});

it("keeps trying what may pass by itself", () => {
  expect(["M_FORBIDDEN", "NO_TRANSPORT", "NO_FRAME_ENCRYPTION"].every(isFinal)).toBe(true);
  expect(["SIGNAL_TIMEOUT", "ICE_CHECKING", "M_UNKNOWN", "SERVER_UNREACHABLE"].some(isFinal)).toBe(false);
});

describe("formatDetails", () => {
  it("gives one line for each fact", () => {
    expect(formatDetails({ path: "signal", code: "X", fatal: true, details: { signal: "y" } }, { version: "1" })).toBe(
      "code: X\npath: signal\nsignal: y\nversion: 1",
    );
  });
});
