// One participant of a LiveKit room, for the scripts to drive: window.peer.
'use strict';
const { Room, RoomEvent, Track, ExternalE2EEKeyProvider, VideoPresets } = window.LivekitClient;

window.peer = {
  room: null,
  events: [], // { name, ... } in order
  messages: [], // { text, from, reliable }
  keys: null,

  async connect({ url, token, room = {}, options = {}, key }) {
    let encryption;
    if (key) {
      this.keys = new ExternalE2EEKeyProvider();
      await this.keys.setKey(key);
      encryption = { keyProvider: this.keys, worker: new Worker('/livekit/livekit-client.e2ee.worker.js') };
    }
    const r = (this.room = new Room({
      adaptiveStream: false,
      dynacast: false,
      videoCaptureDefaults: { resolution: { width: 640, height: 360, frameRate: 15 } },
      ...(encryption ? { encryption } : {}),
      ...room,
    }));
    const note = (name, more = {}) => this.events.push({ name, at: Date.now(), ...more });
    r.on(RoomEvent.Reconnecting, () => note('reconnecting'));
    r.on(RoomEvent.SignalReconnecting, () => note('signalReconnecting'));
    r.on(RoomEvent.Reconnected, () => note('reconnected'));
    r.on(RoomEvent.Disconnected, (reason) => note('disconnected', { reason }));
    r.on(RoomEvent.ParticipantConnected, (p) => note('joined', { who: p.identity, sid: p.sid }));
    r.on(RoomEvent.ParticipantDisconnected, (p) => note('left', { who: p.identity, sid: p.sid }));
    r.on(RoomEvent.TrackMuted, (t, p) => note('muted', { who: p.identity, source: t.source }));
    r.on(RoomEvent.TrackUnmuted, (t, p) => note('unmuted', { who: p.identity, source: t.source }));
    r.on(RoomEvent.TrackSubscriptionFailed, (sid, p) => note('subscriptionFailed', { who: p?.identity, sid }));
    r.on(RoomEvent.ActiveSpeakersChanged, (s) => note('speakers', { who: s.map((p) => p.identity) }));
    r.on(RoomEvent.LocalTrackSubscribed, (t) => note('localTrackSubscribed', { source: t.source }));
    r.on(RoomEvent.EncryptionError, (e) => note('encryptionError', { message: e?.message }));
    r.on(RoomEvent.TrackSubscribed, (track, pub, p) => {
      note('subscribed', { who: p.identity, source: pub.source });
      const e = track.attach();
      e.dataset.who = p.identity;
      document.body?.append(e);
    });
    r.on(RoomEvent.TrackUnsubscribed, (track, pub, p) => {
      note('unsubscribed', { who: p.identity, source: pub.source });
      track.detach().forEach((e) => e.remove());
    });
    r.on(RoomEvent.DataReceived, (payload, p, kind, topic) => {
      this.messages.push({ text: new TextDecoder().decode(payload), from: p?.identity, reliable: kind === 0, topic });
    });
    if (encryption) await r.setE2EEEnabled(true);
    await r.connect(url, token, options);
    return { sid: r.localParticipant.sid, identity: r.localParticipant.identity, room: r.name, server: r.serverInfo?.version };
  },

  // setKey replaces the shared key.
  setKey(key) {
    return this.keys.setKey(key);
  },

  async publish({ camera, microphone = false, codec = 'vp8', simulcast = true, resolution = { width: 640, height: 360, frameRate: 15 } }) {
    const p = this.room.localParticipant;
    const out = {};
    if (camera) {
      const pub = await p.setCameraEnabled(true, { resolution }, {
        videoCodec: codec, simulcast, backupCodec: false,
        videoSimulcastLayers: [VideoPresets.h180],
        videoEncoding: { maxBitrate: 400_000, maxFramerate: resolution.frameRate },
      });
      out.camera = pub?.trackSid;
    }
    if (microphone) {
      const pub = await p.setMicrophoneEnabled(true, { echoCancellation: false, noiseSuppression: false, autoGainControl: false });
      out.microphone = pub?.trackSid;
    }
    return out;
  },

  // remote describes a participant as this one sees it.
  remote(identity) {
    const p = this.room.remoteParticipants.get(identity);
    if (!p) return null;
    return {
      sid: p.sid,
      quality: p.connectionQuality,
      tracks: [...p.trackPublications.values()].map((t) => ({
        sid: t.trackSid, source: t.source, muted: t.isMuted, subscribed: t.isSubscribed, encrypted: t.isEncrypted, mime: t.mimeType, simulcasted: t.simulcasted, dimensions: t.dimensions,
        layers: t.trackInfo?.layers?.map((l) => ({ width: l.width, height: l.height, quality: l.quality })),
      })),
    };
  },

  // received is the state of what comes in of a participant's track.
  async received(identity, source = 'camera') {
    const p = this.room.remoteParticipants.get(identity);
    const pub = p && [...p.trackPublications.values()].find((t) => t.source === source);
    const track = pub?.track;
    if (!track?.receiver) return { subscribed: false };
    const report = await track.receiver.getStats();
    const out = { subscribed: true, frames: 0, bytes: 0, packets: 0, energy: 0, width: 0, height: 0 };
    for (const s of report.values()) {
      if (s.type !== 'inbound-rtp') continue;
      out.frames += s.framesDecoded ?? 0;
      out.bytes += s.bytesReceived ?? 0;
      out.packets += s.packetsReceived ?? 0;
      out.energy += s.totalAudioEnergy ?? 0;
      out.width = s.frameWidth ?? 0;
      out.height = s.frameHeight ?? 0;
      out.ssrc = s.ssrc;
      out.codec = report.get(s.codecId)?.mimeType;
    }
    return out;
  },

  wantSize(identity, width, height) {
    const p = this.room.remoteParticipants.get(identity);
    const pub = p && [...p.trackPublications.values()].find((t) => t.source === 'camera');
    pub.setVideoDimensions({ width, height });
  },

  send(text, reliable, to) {
    return this.room.localParticipant.publishData(new TextEncoder().encode(text), { reliable, topic: 'test', ...(to ? { destinationIdentities: to } : {}) });
  },

  simulate(scenario) {
    return this.room.simulateScenario(scenario);
  },

  setMicrophone(on) {
    return this.room.localParticipant.setMicrophoneEnabled(on);
  },

  setCamera(on) {
    return this.room.localParticipant.setCameraEnabled(on);
  },

  leave() {
    return this.room.disconnect();
  },
};
