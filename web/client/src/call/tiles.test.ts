import { describe, expect, it } from "vitest";
import { buildScene, chooseStage, type Media, type Member, type Person, type SceneOptions } from "./tiles.ts";

const member = (user: string, o: Partial<Member> = {}): Member => ({
  userId: `@${user}:x`,
  deviceId: "D",
  identity: `@${user}:x:D`,
  service: "https://sfu",
  eventId: "$e",
  joinedAt: 1,
  ...o,
});
const media = (track: string, o: Partial<Media<string>> = {}): Media<string> => ({ track, muted: false, encrypted: true, ...o });
const person = (user: string, o: Partial<Person<string>> = {}): Person<string> => ({
  identity: `@${user}:x:D`,
  local: false,
  mic: media("mic"),
  camera: media("cam"),
  screen: undefined,
  screenAudio: undefined,
  speaking: false,
  level: 0,
  quality: "good",
  ...o,
});
const options = (people: Person<string>[], o: Partial<SceneOptions<string>> = {}): SceneOptions<string> => ({
  ownIdentity: "@me:x:D",
  encrypted: true,
  person: (id) => people.find((p) => p.identity === id),
  name: (u) => u.slice(1, u.indexOf(":")),
  hand: () => false,
  keyless: () => false,
  ...o,
});

describe("buildScene", () => {
  it("shows nobody whom the room does not know", () => {
    const s = buildScene([member("me")], options([person("me", { local: true }), person("stranger")]));
    expect(s.tiles.map((t) => t.name)).toEqual(["me"]);
    expect(s.sounds).toEqual([]);
  });

  it("shows members without media as waiting, muted and without a picture", () => {
    const [t] = buildScene([member("tom")], options([])).tiles;
    expect(t).toMatchObject({ waiting: true, muted: true, video: undefined, quality: "unknown" });
  });

  it("puts oneself last and does not play one's own voice", () => {
    const s = buildScene([member("me", { joinedAt: 0 }), member("tom")], options([person("me", { local: true }), person("tom")]));
    expect(s.tiles.map((t) => t.name)).toEqual(["tom", "me"]);
    expect(s.sounds.map((x) => x.key)).toEqual(["@tom:x:D/mic"]);
  });

  it("gives a shared screen a tile and its sound", () => {
    const s = buildScene([member("tom")], options([person("tom", { screen: media("scr"), screenAudio: media("snd") })]));
    expect(s.tiles.map((t) => t.kind)).toEqual(["screen", "camera"]);
    expect(s.sounds.map((x) => x.track)).toEqual(["mic", "snd"]);
  });

  it("drops the picture of a camera that is off and the sound of a muted microphone", () => {
    const s = buildScene([member("tom")], options([person("tom", { mic: media("m", { muted: true }), camera: media("c", { muted: true }) })]));
    expect(s.tiles[0]).toMatchObject({ muted: true, video: undefined, waiting: false });
    expect(s.sounds).toEqual([]);
  });

  it("marks what is not encrypted in an encrypted room, and only there", () => {
    const p = person("tom", { mic: media("m", { encrypted: false }) });
    expect(buildScene([member("tom")], options([p])).tiles[0]!.plain).toBe(true);
    expect(buildScene([member("tom")], options([p], { encrypted: false })).tiles[0]!.plain).toBe(false);
    expect(buildScene([member("tom")], options([person("tom")])).tiles[0]!.plain).toBe(false);
  });

  it("counts a membership once and marks second devices", () => {
    const s = buildScene(
      [member("tom"), member("tom"), member("tom", { deviceId: "E", identity: "@tom:x:E", joinedAt: 2 })],
      options([person("tom")]),
    );
    expect(s.tiles.map((t) => [t.identity, t.otherDevice])).toEqual([["@tom:x:D", false], ["@tom:x:E", true]]);
  });
});

describe("chooseStage", () => {
  const tiles = buildScene(
    [member("me"), member("tom"), member("ann")],
    options([person("me", { local: true, screen: media("s") }), person("tom"), person("ann")]),
  ).tiles;
  const cameras = tiles.filter((t) => t.kind === "camera");

  it("prefers what was pinned, then a screen", () => {
    expect(chooseStage(tiles, "@tom:x:D/camera", false, undefined)).toBe("@tom:x:D/camera");
    expect(chooseStage(tiles, "@gone:x:D/camera", false, undefined)).toBe("@me:x:D/screen");
  });

  it("has no stage in a grid of faces, and the last speaker in spotlight", () => {
    expect(chooseStage(cameras, undefined, false, "@tom:x:D")).toBeUndefined();
    expect(chooseStage(cameras, undefined, true, "@tom:x:D")).toBe("@tom:x:D/camera");
    expect(chooseStage(cameras, undefined, true, "@me:x:D")).not.toBe("@me:x:D/camera");
    expect(chooseStage([], undefined, true, undefined)).toBeUndefined();
  });
});
