/** initials gives one or two letters for a face without a picture. */
export function initials(name: string): string {
  const words = name
    .replace(/^[@#!]/, "")
    .split(/[\s._\-:]+/)
    .filter((w) => /[\p{L}\p{N}]/u.test(w));
  const first = [...(words[0] ?? "?")][0] ?? "?";
  const second = words.length > 1 ? ([...words[words.length - 1]!][0] ?? "") : "";
  return (first + second).toUpperCase();
}

/** hue gives every name a colour of its own that stays the same everywhere. */
export function hue(name: string): number {
  let h = 2166136261;
  for (let i = 0; i < name.length; i++) h = Math.imul(h ^ name.charCodeAt(i), 16777619);
  return (h >>> 0) % 360;
}

/** localpart of a user ID: `@mia:example.org` is `mia`. */
export function localpart(userId: string): string {
  const m = /^@([^:]*)/.exec(userId);
  return m ? m[1]! : userId;
}

/** clock formats seconds as 0:07, 12:34 or 1:02:03. */
export function clock(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  const h = Math.floor(s / 3600);
  const m = Math.floor((s % 3600) / 60);
  const two = (n: number) => String(n).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

/** timeOfDay formats a timestamp as the reader's locale writes times. */
export function timeOfDay(ts: number): string {
  return new Date(ts).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

/** dayKey tells days apart in the reader's time zone. */
export function dayKey(ts: number): string {
  const d = new Date(ts);
  return `${d.getFullYear()}-${d.getMonth()}-${d.getDate()}`;
}

/** dayName formats a day for a divider between messages. */
export function dayName(ts: number, now = Date.now()): string {
  const d = new Date(ts);
  const sameYear = d.getFullYear() === new Date(now).getFullYear();
  return d.toLocaleDateString([], {
    weekday: "long",
    day: "numeric",
    month: "long",
    ...(sameYear ? {} : { year: "numeric" }),
  });
}
