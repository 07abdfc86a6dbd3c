import { Store, useStore } from "./store.ts";

/** Where the page is. Rooms are named by ID or alias. */
export type Route =
  | { at: "home" }
  | { at: "login" }
  | { at: "register" }
  | { at: "operator" }
  | { at: "room"; room: string; via: string[] }
  | { at: "call"; room: string; via: string[]; guest: boolean };

/**
 * parseRoute reads a path and query as they stand in the address bar. Unknown
 * paths are home: the server answers every one of them with this page.
 */
export function parseRoute(path: string, query: string): Route {
  const params = new URLSearchParams(query);
  const parts = path.split("/").filter((p) => p !== "");
  const via = params.getAll("via").filter((v) => v !== "");
  const room = decode(parts[1] ?? "");
  switch (parts[0]) {
    case "login":
      return { at: "login" };
    case "register":
      return { at: "register" };
    case "operator":
      return { at: "operator" };
    case "room":
      if (isRoomName(room)) return { at: "room", room, via };
      break;
    case "call":
      if (isRoomName(room)) return { at: "call", room, via, guest: params.has("guest") };
      break;
  }
  return { at: "home" };
}

/** formatRoute is the inverse of parseRoute. */
export function formatRoute(route: Route): string {
  switch (route.at) {
    case "home":
      return "/";
    case "login":
      return "/login";
    case "register":
      return "/register";
    case "operator":
      return "/operator";
    case "room":
      return `/room/${encodeURIComponent(route.room)}${queryString(route.via, false)}`;
    case "call":
      return `/call/${encodeURIComponent(route.room)}${queryString(route.via, route.guest)}`;
  }
}

function queryString(via: string[], guest: boolean): string {
  const parts = via.map((v) => `via=${encodeURIComponent(v)}`);
  if (guest) parts.push("guest");
  return parts.length > 0 ? `?${parts.join("&")}` : "";
}

function decode(s: string): string {
  try {
    return decodeURIComponent(s);
  } catch {
    return "";
  }
}

function isRoomName(s: string): boolean {
  return (s.startsWith("!") || s.startsWith("#")) && s.length > 1 && s.length <= 255;
}

const here = (): Route =>
  typeof location === "undefined" ? { at: "home" } : parseRoute(location.pathname, location.search);

export const route = new Store<Route>(here());

/** go moves to a route and keeps the browser's history in step. */
export function go(to: Route, replace = false): void {
  const url = formatRoute(to);
  if (replace) history.replaceState(null, "", url);
  else if (url !== location.pathname + location.search) history.pushState(null, "", url);
  route.set(to);
}

/** listenToHistory follows the browser's back and forward buttons. */
export function listenToHistory(): void {
  addEventListener("popstate", () => route.set(here()));
}

export function useRoute(): Route {
  return useStore(route);
}
