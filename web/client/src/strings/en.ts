import type { DeviceProblem } from "../call/devices.ts";
import type { Path, Trouble } from "../call/trouble.ts";
import type { Note } from "../matrix/timeline.ts";
import type { Cause, LegState } from "../phone/api.ts";

/**
 * Every sentence on the page. A second language is a second file of this
 * shape. Functions take what varies, so that each language orders its words
 * and picks its plurals itself.
 */
const plural = new Intl.PluralRules("en");
const many = (n: number, one: string, other: string) => `${n} ${plural.select(n) === "one" ? one : other}`;
const languages = new Intl.DisplayNames("en", { type: "language" });
const listFormat = new Intl.ListFormat("en", { type: "conjunction" });

export const en = {
  app: "Trunkhall",
  loading: "One moment …",
  close: "Close",
  back: "Back",
  cancel: "Cancel",
  retry: "Try again",
  copy: "Copy",
  copied: "Copied",
  more: "More",
  you: "you",
  guest: "guest",
  list: (names: string[]) => listFormat.format(names),

  door: {
    title: (server: string | undefined) => (server ? `Calls for ${server}` : "Calls for Matrix rooms"),
    lead: "Talk and see each other in any Matrix room, from this page or from another Matrix app.",
    signIn: "Sign in",
    register: "Create account",
    link: "Use a link",
    user: "Username",
    userHint: "or @name:server",
    password: "Password",
    passwordAgain: "Password, once more",
    mismatch: "The two passwords differ.",
    token: "Invitation code",
    tokenHint: "Whoever runs this server gives these out.",
    submitSignIn: "Sign in",
    submitRegister: "Create account",
    closed: "This server does not take new accounts from this page. Ask whoever runs it for one.",
    linkLabel: "Link to a call or a room",
    linkGo: "Open",
    linkBad: "That is not a link to a call or a room of this server.",
    working: "Opening the line …",
    stateUp: (server: string, ms: number) => `${server} answers in ${ms} ms`,
    stateDown: "The server does not answer",
    stateChecking: "Calling the server …",
    open: "open to new accounts",
    withCode: "new accounts with a code",
    closedShort: "no new accounts",
    show: "Show password",
    hide: "Hide password",
  },

  elsewhere: {
    title: "Open in another window",
    why: "Trunkhall is already open in this browser. Only one window at a time can use your keys.",
    here: "Use it here",
  },

  errors: {
    wrongPassword: "That username and password do not belong together.",
    taken: "That username is taken.",
    badName: "Usernames are made of small letters, digits and . _ = - /",
    weak: "Please choose a longer password.",
    tooOften: "Too many tries. Wait a little, then try again.",
    noServer: "The server does not answer. Check your connection.",
    badToken: "That invitation code is not valid.",
    signedOut: "You were signed out. Please sign in again.",
    guestsClosed: "This server lets nobody in without an account. Sign in to join.",
    forbidden: "The server does not allow that.",
    notFound: "There is no such room, or it is not for you.",
    other: (text: string) => `That did not work: ${text}`,
  },

  hall: {
    rooms: "Rooms",
    newRoom: "New room",
    none: "No rooms yet.",
    noneHint: "Make one and send its link to the people you want to talk to.",
    pick: "Pick a room, or make a new one.",
    invited: "Invitation",
    inCall: (names: string[]) => `In a call now: ${listFormat.format(names)}`,
    unread: (n: number) => many(n, "unread message", "unread messages"),
    signOut: "Sign out",
    signOutAsk: "Sign out of this device? Encrypted messages that only this device can read will be lost here.",
    account: "Your account",
    save: "Save",
    signedInAs: (id: string) => `Signed in as ${id}`,
    offline: "No connection to the server. Trying again …",
    sent: (who: string, body: string) => `${who}: ${body}`,
  },

  create: {
    title: "New room",
    name: "Name",
    namePlaceholder: "Standup",
    link: "Who may come in",
    members: "Members only",
    membersHint: "You invite people by name.",
    anyone: "Anyone with the link",
    anyoneHint: "Also without an account. The room is listed nowhere.",
    encrypted: "End-to-end encrypted",
    encryptedHint: "Only the people in the room can read, hear and see. This cannot be taken back later.",
    invite: "Invite",
    inviteHint: "@name:server, several with spaces",
    inviteBad: (s: string) => `${s} is not a user ID such as @mia:example.org`,
    submit: "Create room",
  },

  room: {
    encrypted: "End-to-end encrypted",
    encryptedShort: "Encrypted",
    notEncrypted: "Not encrypted",
    anyone: "Anyone with the link may come in",
    members: (n: number) => many(n, "member", "members"),
    showMembers: "Members",
    start: "Start call",
    startShort: "Call",
    join: "Join call",
    joinShort: "Join",
    copyLink: "Copy link",
    linkCopied: "Link copied",
    linkFailed: "The link could not be copied. It is:",
    invite: "Invite",
    inviteLabel: "User ID to invite",
    invitePlaceholder: "@mia:example.org",
    inviteSent: (who: string) => `${who} is invited`,
    message: "Message",
    messagePlaceholder: (encrypted: boolean) => (encrypted ? "Encrypted message" : "Message"),
    send: "Send",
    sending: "sending",
    failed: "not sent",
    resend: "Send again",
    edited: "edited",
    gone: "Message removed",
    undecryptable: "This message was encrypted before this device could read it.",
    file: (name: string) => `File: ${name || "unnamed"}`,
    older: "Earlier messages",
    beginning: "This is where the room begins.",
    newest: "Go to the newest message",
    accept: "Accept",
    decline: "Decline",
    invitedBy: (who: string) => `${who} invites you to this room.`,
    unknown: "A room",
    notIn: "You are not in this room yet.",
    enter: "Join room",
    leave: "Leave room",
    leaveAsk: (name: string) => `Leave ${name}? You need a new invitation to come back.`,
    remove: (who: string) => `Remove ${who}`,
    ban: (who: string) => `Ban ${who}`,
    removeShort: "Remove",
    banShort: "Ban",
    removeAsk: (who: string) => `Remove ${who} from the room and its call? A new invitation or the link lets them back in.`,
    banAsk: (who: string) => `Ban ${who} from the room and its call? They cannot come back until somebody unbans them.`,
    admin: "Admin",
    moderator: "Moderator",
    creator: "Creator",
    pending: "invited",
    callNow: (names: string[]) => `${listFormat.format(names)} ${names.length === 1 ? "is" : "are"} in a call`,
    log: "Messages",
  },

  note: (n: Note, name: (id: string) => string): string => {
    const who = name(n.who);
    const whom = n.whom === undefined ? "" : name(n.whom);
    switch (n.what) {
      case "joined":
        return `${who} came in`;
      case "left":
        return `${who} left`;
      case "removed":
        return `${who} removed ${whom}`;
      case "banned":
        return `${who} banned ${whom}`;
      case "invited":
        return `${who} invited ${whom}`;
      case "renamed":
        return n.text ? `${who} named the room “${n.text}”` : `${who} took the room’s name away`;
      case "created":
        return `${who} made this room`;
      case "encrypted":
        return "Messages and calls here are end-to-end encrypted from now on";
      case "call":
        return `${who} started a call`;
    }
  },

  lobby: {
    title: (room: string) => room,
    guestTitle: "You are invited to a call",
    name: "Your name",
    nameHint: "This is how the others see you.",
    preview: "Your picture",
    cameraOff: "Your camera is off",
    micOff: "Microphone off",
    level: "Microphone level",
    microphone: "Microphone",
    camera: "Camera",
    speaker: "Speaker",
    defaultDevice: "System default",
    mute: "Mute",
    unmute: "Unmute",
    cameraOn: "Turn camera on",
    cameraOffDo: "Turn camera off",
    inside: (names: string[]) => `${listFormat.format(names)} ${names.length === 1 ? "is" : "are"} inside`,
    nobody: "Nobody is inside yet. You will be the first.",
    encrypted: "End-to-end encrypted: only the people in the call can see and hear it.",
    notEncrypted: "Not end-to-end encrypted: whoever runs the server could listen.",
    asGuest: "You join as a guest, without an account.",
    join: "Join",
    joining: "Joining …",
    haveAccount: "Sign in instead",
    checking: "Checking your network …",
    checkOk: (ms: number) => `Your network is fine: UDP is open, the server answers in ${ms} ms.`,
    checkNoRelay: (ms: number) => `The server answers in ${ms} ms. It has no relay to test UDP with.`,
    checkServer: (ms: number) => `The server answers in ${ms} ms.`,
    checkTcp: "Your network blocks UDP. Calls go over TCP; pictures may stutter.",
    checkBad: "Neither UDP nor TCP reaches the server’s relay. Media may still get through directly.",
    checkDown: "The server does not answer.",
    needMembership: "You are not a member of this room. Ask somebody inside for an invitation.",
  },

  device: {
    microphone: "Microphone",
    camera: "Camera",
    screen: "Screen",
    denied: (what: string) => `${what}: the browser does not allow it. Click the icon beside the address to allow it.`,
    missing: (what: string) => `${what}: none found. Plug one in or pick another one.`,
    busy: (what: string) => `${what}: in use by another program. Close that one, then try again.`,
    insecure: (what: string) => `${what}: browsers only give it to pages with https.`,
    other: (what: string) => `${what}: it could not be opened.`,
  } as Record<DeviceProblem, (what: string) => string> & { microphone: string; camera: string; screen: string },

  call: {
    mute: "Mute",
    unmute: "Unmute",
    cameraOff: "Camera off",
    cameraOn: "Camera on",
    share: "Share screen",
    stopShare: "Stop sharing",
    hand: "Raise hand",
    lowerHand: "Lower hand",
    people: "People",
    chat: "Chat",
    leave: "Leave",
    settings: "Devices",
    spotlight: "Spotlight view",
    grid: "Grid view",
    pin: (name: string) => `Make ${name} large`,
    unpin: (name: string) => `Make ${name} small again`,
    connecting: "Connecting …",
    reconnecting: "The connection was lost. Reconnecting …",
    alone: "You are the only one here. Send the link to whoever should come.",
    waiting: "Connecting …",
    keyless: "Waiting for the key …",
    muted: "muted",
    handUp: "hand raised",
    plain: "not encrypted",
    yourScreen: "Your screen",
    screenOf: (name: string) => `${name}’s screen`,
    tile: (name: string, facts: string[]) => (facts.length > 0 ? `${name}, ${facts.join(", ")}` : name),
    speaking: "speaking",
    otherDevice: "another device",
    sound: "Turn sound on",
    soundWhy: "The browser holds sound back until you click.",
    inCall: (n: number) => many(n, "person in the call", "people in the call"),
    inRoom: "In the room",
    routes: {
      udp: "direct over UDP",
      tcp: "over TCP",
      "relay-udp": "over a relay (UDP)",
      "relay-tcp": "over a relay (TCP)",
    },
    quality: { excellent: "connection very good", good: "connection good", poor: "connection poor", lost: "connection lost", unknown: "connection not known yet" },
    announceJoined: (name: string) => `${name} joined`,
    announceLeft: (name: string) => `${name} left`,
    controls: "Call controls",
    keys: { mic: "Ctrl+D", camera: "Ctrl+E" },
  },

  trouble: {
    still: "Still trying …",
    copyDetails: "Copy details",
    leave: "Leave",
    rejoin: "Sign in again",
    /** Which path failed, and what to do about it. */
    say: (t: Trouble): { title: string; what: string; todo: string } => {
      switch (t.path as Path) {
        case "server":
          return {
            title: "The server cannot be reached",
            what: "This page gets no answer from the server, neither for messages nor for calls.",
            todo: "Check your network. If other pages work, the server may be down; we keep trying.",
          };
        case "transports":
          return {
            title: "This server is not set up for calls",
            what: "The homeserver does not say where calls take place.",
            todo: "Whoever runs it has to set up the call service and name it to the homeserver.",
          };
        case "token":
          return t.code === "M_FORBIDDEN"
            ? {
                title: "You may not enter this call",
                what: "The call service says that you are not a member of this room.",
                todo: "Join the room first, or ask somebody inside for an invitation.",
              }
            : {
                title: "The call service does not let you in",
                what: "It gave no ticket for this call.",
                todo: "Try again in a moment. If it stays so, send the details to whoever runs the server.",
              };
        case "membership":
          return {
            title: "The room did not take note of you",
            what: "You could not be announced in the room, so the others would not see you.",
            todo: "You may lack the right to take part in calls here. Ask a moderator of the room.",
          };
        case "signal":
          return {
            title: "The media server cannot be reached",
            what: "The WebSocket connection to it does not open. A proxy on the way may block WebSockets.",
            todo: "Try another network or switch a VPN or proxy off.",
          };
        case "media":
          if (t.code === "ICE_UDP_BLOCKED") {
            return {
              title: "Your network blocks UDP",
              what: "Voice and video found no way through. TCP is open, but the media server did not answer there.",
              todo: "Try another network, for instance your phone’s. Whoever runs the server can open TCP port 7881 or TURN over TLS.",
            };
          }
          if (t.code === "ICE_NO_CANDIDATES") {
            return {
              title: "The media server gave no address",
              what: "It answered, but named no address for voice and video.",
              todo: "Whoever runs the server should check its public addresses (node_ips) and ports.",
            };
          }
          return {
            title: "Voice and video do not get through",
            what: "Messages reach the server, but none of UDP, TCP and the relay carries media.",
            todo: "Try another network. Whoever runs the server should check that UDP port 7882 and TCP port 7881 are open.",
          };
        case "keys":
          return {
            title: "This browser cannot encrypt calls",
            what: "The room is end-to-end encrypted, and this browser lacks what that takes for voice and video.",
            todo: "Use a current Firefox, Chrome, Edge or Safari.",
          };
        default:
          return {
            title: "The call does not connect",
            what: "Something on the way did not answer.",
            todo: "Try again. If it stays so, send the details to whoever runs the server.",
          };
      }
    },
  },

  phone: {
    title: "Telephone",
    dialIn: "Call in by telephone",
    language: (code: string) => languages.of(code) ?? code,
    pin: "PIN",
    inHead: (number: string, pin: string) => `${number} · PIN ${pin}`,
    copy: "Copy number and PIN",
    invite: (room: string, number: string, pin: string) => `Join “${room}” by telephone: call ${number} and enter PIN ${pin}#`,
    noPin: "This room has no PIN yet.",
    makePin: "Make a PIN",
    changePin: "Change the PIN",
    changePinAsk: "The old PIN stops working at once. Whoever has it must be told the new one.",
    notForYou: "Somebody who may change this room can make one.",
    noNumber: "No telephone number leads here. Whoever runs the server has to set one up.",
    lobby: "Callers wait until somebody lets them in",
    locked: "No telephone may come in",
    e2ee: "Let telephones into this encrypted room",
    e2eeHint: "What a telephone hears and says is not end-to-end encrypted beyond this server. Everybody in the call is shown that one is there.",
    add: "Call a telephone",
    number: "Number",
    numberHint: "With the country code, like +49 30 123456",
    call: "Call",
    calling: "Calling …",
    keypad: "Keypad",
    keys: "Keys",
    erase: "Delete the last digit",
    hangUp: "Hang up",
    hangUpAsk: (who: string) => `Hang up on ${who}?`,
    dismiss: "Close",
    letIn: "Let in",
    refuse: "Turn away",
    waits: (who: string) => `${who} waits to be let in`,
    someone: "A telephone",
    anonymous: "Number withheld",
    mark: "telephone",
    held: "on hold",
    beyond: "not encrypted beyond the server",
    states: {
      new: "Calling …",
      trying: "Calling …",
      ringing: "It is ringing",
      early: "Connecting …",
      answered: "Answered",
      confirmed: "In the call",
      ended: "Ended",
    } as Record<LegState, string>,
    /** What became of a call, for whoever placed it. */
    causes: {
      "": "Ended",
      hangup: "They hung up",
      cancelled: "Cancelled",
      busy: "The line is busy",
      no_answer: "Nobody answered",
      rejected: "The call was declined",
      wrong_number: "This number does not exist",
      not_allowed: "This number may not be called from here",
      no_line: "No line is free. Try again in a moment.",
      media: "The other side and this server found no common way to send sound",
      removed: "Removed from the call",
      room_ended: "The call is over",
      transferred: "Transferred",
      limit: "The longest time for a call is over",
      shutdown: "The server is being restarted",
      failed: "The call failed",
    } as Record<Cause, string>,
    tooOften: "Too many calls. Wait a little.",
    failed: "That did not work.",
  },

  operator: {
    title: "Operator",
    only: "This page is for administrators of this server.",
    signIn: "Sign in",
    toHall: "Rooms",
    none: "This server has no telephone line. Set one up in trunkhall.yaml under sip.trunks.",
    updated: (time: string) => `as of ${time}`,
    stale: "The server does not answer. What you see is old.",
    totals: { active: "in a call now", calls: "calls today", minutes: "minutes today", banned: "banned" },
    trunks: "Trunks",
    legs: "Calls now",
    records: "Past calls",
    bans: "Banned addresses",
    noLegs: "No telephone is in a call.",
    noRecords: "No calls yet.",
    noBans: "Nobody is banned.",
    noTrunks: "No trunk.",
    up: "up",
    down: "down",
    cols: {
      trunk: "Trunk",
      state: "State",
      registration: "Registration",
      ping: "Answer",
      calls: "Calls",
      who: "Who",
      room: "Room",
      since: "Since",
      codec: "Codec",
      loss: "Loss",
      jitter: "Jitter",
      mos: "MOS",
      actions: "Actions",
      time: "Time",
      from: "From",
      to: "To",
      length: "Length",
      end: "End",
      address: "Address",
      why: "Why",
      until: "Until",
    },
    registered: { "": "none", registered: "registered", registering: "registering …", failed: "failed" } as Record<string, string>,
    directions: { inbound: "in", outbound: "out", both: "both ways" } as Record<string, string>,
    noSound: "no packet yet",
    strangers: (n: number) => many(n, "packet from elsewhere dropped", "packets from elsewhere dropped"),
    lift: "Lift the ban",
    liftAsk: (ip: string) => `Lift the ban on ${ip}? It may try again at once.`,
    hangUpAsk: (who: string) => `Hang up on ${who}? Both sides are cut off.`,
    done: { hangup: (who: string) => `Hung up on ${who}.`, lift: (ip: string) => `The ban on ${ip} is lifted.` },
    more: "Details",
  },

  after: {
    left: "You left the call",
    removed: (by: string | undefined) => (by ? `${by} removed you from the room` : "You were removed from the room"),
    banned: (by: string | undefined) => (by ? `${by} banned you from the room` : "You were banned from the room"),
    elsewhere: "The call goes on in another window",
    "signed-out": "You signed out",
    reason: (text: string) => `Reason: ${text}`,
    lasted: (time: string) => `It lasted ${time}.`,
    never: "It never connected.",
    with: (names: string[]) => `With ${listFormat.format(names)}.`,
    alone: "Nobody else came.",
    quality: (good: number) =>
      good > 0.97
        ? "The connection was good all the time."
        : good > 0.85
          ? "The connection was good most of the time."
          : "The connection was poor for a good part of it.",
    rejoin: "Join again",
    toRoom: "Back to the room",
    home: "Home",
  },
};

export type Strings = typeof en;
export const t: Strings = en;
