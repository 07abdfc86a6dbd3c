import { expect, it } from "vitest";
import { sortRelays } from "./netcheck.ts";

it("sorts TURN addresses by transport", () => {
  expect(
    sortRelays(["turn:a:3478", "turn:a:3478?transport=udp", "turn:a:3478?transport=tcp", "turns:a:443?transport=tcp", "stun:a"]),
  ).toEqual({
    udp: ["turn:a:3478", "turn:a:3478?transport=udp"],
    tcp: ["turn:a:3478?transport=tcp"],
    tls: ["turns:a:443?transport=tcp"],
  });
});
