import {
  EventType,
  HistoryVisibility,
  JoinRule,
  KnownMembership,
  NotificationCountType,
  Preset,
  Visibility,
  type ICreateRoomOpts,
  type ICreateRoomStateEvent,
  type MatrixClient,
  type Room,
  type RoomMember,
} from "matrix-js-sdk";
import { GuestAccess } from "matrix-js-sdk/lib/@types/partials";
import { localpart } from "../lib/format.ts";
import { formatRoute } from "../lib/router.ts";

/** Who a room's link lets in. */
export type Access = "members" | "anyone";

export interface NewRoom {
  name: string;
  encrypted: boolean;
  access: Access;
  invite: string[];
}

/** The state event that says "I am in the call" in today's clients (MSC3401 lineage). */
export const CALL_MEMBER = "org.matrix.msc3401.call.member";

/**
 * roomOptions turns the dialog's answers into a createRoom request. Everybody
 * may enter the call (power 0 for the membership event). A link for anyone
 * means: join rule public, not in the directory, guests may join. What was
 * said before somebody came stays unknown to those who came by link.
 */
export function roomOptions(r: NewRoom): ICreateRoomOpts {
  const initial: ICreateRoomStateEvent[] = [
    {
      type: EventType.RoomHistoryVisibility,
      state_key: "",
      content: { history_visibility: r.access === "anyone" ? HistoryVisibility.Joined : HistoryVisibility.Shared },
    },
    {
      type: EventType.RoomGuestAccess,
      state_key: "",
      content: { guest_access: r.access === "anyone" ? GuestAccess.CanJoin : GuestAccess.Forbidden },
    },
    {
      type: EventType.RoomJoinRules,
      state_key: "",
      content: { join_rule: r.access === "anyone" ? JoinRule.Public : JoinRule.Invite },
    },
  ];
  if (r.encrypted) {
    initial.push({
      type: EventType.RoomEncryption,
      state_key: "",
      content: { algorithm: "m.megolm.v1.aes-sha2" },
    });
  }
  return {
    name: r.name.trim(),
    visibility: Visibility.Private,
    preset: r.access === "anyone" ? Preset.PublicChat : Preset.PrivateChat,
    invite: r.invite,
    initial_state: initial,
    power_level_content_override: {
      events: {
        [CALL_MEMBER]: 0,
        "org.matrix.msc4143.rtc.member": 0,
        "m.room.name": 50,
        "m.room.topic": 50,
        "m.room.avatar": 50,
        "m.room.canonical_alias": 50,
        "m.room.history_visibility": 100,
        "m.room.power_levels": 100,
        "m.room.encryption": 100,
        "m.room.tombstone": 100,
        "m.room.server_acl": 100,
      },
    },
  };
}

/** isUserId reports whether s can be invited. */
export function isUserId(s: string): boolean {
  return /^@[^:\s]+:[^\s]+$/.test(s) && s.length <= 255;
}

export function accessOf(room: Room): Access {
  return room.getJoinRule() === JoinRule.Public && room.getGuestAccess() === GuestAccess.CanJoin ? "anyone" : "members";
}

/** viaServers picks up to three servers through which a room can be found: room IDs of version 12 name none. */
export function viaServers(members: { userId: string; powerLevel: number }[], own: string | null): string[] {
  const score = new Map<string, number>();
  for (const m of members) {
    const server = m.userId.slice(m.userId.indexOf(":") + 1);
    if (server === "" || !m.userId.includes(":")) continue;
    score.set(server, (score.get(server) ?? 0) + 1 + Math.max(0, m.powerLevel) * 10);
  }
  const sorted = [...score].sort((a, b) => b[1] - a[1]).map(([s]) => s);
  const list = own !== null && sorted.includes(own) ? [own, ...sorted.filter((s) => s !== own)] : sorted;
  return list.slice(0, 3);
}

/** callLink is the address that invites to a room's call. */
export function callLink(client: MatrixClient, room: Room, origin: string): string {
  const via = viaServers(room.getJoinedMembers(), client.getDomain());
  return origin + formatRoute({ at: "call", room: room.roomId, via, guest: accessOf(room) === "anyone" });
}

/** visibleRooms are those to list: joined ones and invitations, the liveliest first. */
export function visibleRooms(client: MatrixClient): Room[] {
  return client
    .getRooms()
    .filter((r) => {
      const m = r.getMyMembership();
      return (m === KnownMembership.Join || m === KnownMembership.Invite) && !r.isSpaceRoom();
    })
    .sort((a, b) => rank(b) - rank(a) || b.getLastActiveTimestamp() - a.getLastActiveTimestamp());

  function rank(r: Room): number {
    if (r.getMyMembership() === KnownMembership.Invite) return 2;
    return callMembers(client, r).length > 0 ? 1 : 0;
  }
}

/** callMembers are the people in a room's call now, one entry for each person. */
export function callMembers(client: MatrixClient, room: Room): string[] {
  const seen = new Set<string>();
  for (const m of client.matrixRTC.getRoomSession(room).memberships) seen.add(m.userId);
  return [...seen];
}

export function unread(room: Room): number {
  return room.getUnreadNotificationCount(NotificationCountType.Total);
}

/** may reports whether the reader may do something to another member (kick or ban). */
export function may(room: Room, action: "kick" | "ban", me: string, target: RoomMember): boolean {
  if (target.userId === me) return false;
  const mine = room.getMember(me)?.powerLevel ?? 0;
  return room.currentState.hasSufficientPowerLevelFor(action, mine) && target.powerLevel < mine;
}

export function mayInvite(room: Room, me: string): boolean {
  return room.canInvite(me);
}

/**
 * nameOf is how a person is called in a room: the display name (with the ID
 * behind it where somebody else has the same one), or the ID without its server.
 */
export function nameOf(room: Room | null | undefined, userId: string): string {
  const m = room?.getMember(userId);
  return m?.rawDisplayName && m.rawDisplayName !== userId ? m.name : localpart(userId);
}
