// installProbe runs in every page before its own scripts. It changes nothing of
// what the page does, except that the microphone is passed on as it is: the
// browser's noise suppression would take a test tone for noise. It watches the
// peer connections and media elements that the page makes.
export function installProbe() {
  if (window.__probe) return;
  const connections = [];
  const elements = new Set();

  const Native = window.RTCPeerConnection;
  if (!Native) return;
  window.RTCPeerConnection = new Proxy(Native, {
    construct(target, args, self) {
      const pc = Reflect.construct(target, args, self);
      connections.push(pc);
      return pc;
    },
  });

  const capture = navigator.mediaDevices?.getUserMedia?.bind(navigator.mediaDevices);
  if (capture) {
    navigator.mediaDevices.getUserMedia = (constraints) => {
      if (constraints?.audio) {
        const audio = constraints.audio === true ? {} : constraints.audio;
        constraints = { ...constraints, audio: { ...audio, echoCancellation: false, noiseSuppression: false, autoGainControl: false } };
      }
      return capture(constraints);
    };
  }

  const source = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, 'srcObject');
  Object.defineProperty(HTMLMediaElement.prototype, 'srcObject', {
    ...source,
    set(value) {
      elements.add(this);
      source.set.call(this, value);
    },
  });

  const receivers = () => connections
    .filter((pc) => pc.connectionState !== 'closed')
    .flatMap((pc) => pc.getReceivers());
  const remoteTracks = () => new Set(receivers().map((r) => r.track));

  let audio;
  const analysers = new Map(); // track -> analyser
  const last = new Map(); // video element -> frames seen at the previous look

  window.__probe = {
    connections,

    // inbound lists what the page receives, one entry for each RTP stream.
    async inbound() {
      const out = [];
      for (const [n, pc] of connections.entries()) {
        if (pc.connectionState === 'closed') continue;
        const stats = await pc.getStats();
        for (const s of stats.values()) {
          if (s.type !== 'inbound-rtp') continue;
          out.push({
            pc: n, kind: s.kind, track: s.trackIdentifier, mid: s.mid, ssrc: s.ssrc, packets: s.packetsReceived ?? 0, bytes: s.bytesReceived ?? 0,
            frames: s.framesDecoded ?? 0, width: s.frameWidth ?? 0, height: s.frameHeight ?? 0, keyFrames: s.keyFramesDecoded ?? 0,
            energy: s.totalAudioEnergy ?? 0, codec: stats.get(s.codecId)?.mimeType,
          });
        }
      }
      return out;
    },

    // sent counts the RTP packets that the page has sent, on live connections.
    async sent() {
      let packets = 0;
      for (const pc of connections) {
        if (pc.connectionState === 'closed') continue;
        for (const s of (await pc.getStats()).values()) if (s.type === 'outbound-rtp') packets += s.packetsSent ?? 0;
      }
      return packets;
    },

    // paths lists how the live connections are connected.
    async paths() {
      const out = [];
      for (const [n, pc] of connections.entries()) {
        if (pc.connectionState === 'closed') continue;
        const stats = await pc.getStats();
        for (const s of stats.values()) {
          if (s.type !== 'transport') continue;
          const pair = stats.get(s.selectedCandidatePairId);
          const local = pair && stats.get(pair.localCandidateId);
          const remote = pair && stats.get(pair.remoteCandidateId);
          out.push({
            pc: n, state: pc.connectionState, dtls: s.dtlsState, local: local?.candidateType, relay: local?.relayProtocol, protocol: local?.protocol,
            remote: remote && `${remote.candidateType} ${remote.protocol} ${remote.address}:${remote.port}`,
            sent: s.packetsSent, received: s.packetsReceived,
          });
        }
      }
      return out;
    },

    // pictures lists the videos that a person would see now: where they come
    // from, their average colour, and whether they have moved since the last call.
    pictures() {
      const remote = remoteTracks();
      const canvas = new OffscreenCanvas(16, 9);
      const g = canvas.getContext('2d', { willReadFrequently: true });
      const out = [];
      for (const v of document.querySelectorAll('video')) {
        const tracks = v.srcObject?.getVideoTracks?.() ?? [];
        const box = v.getBoundingClientRect();
        const style = getComputedStyle(v);
        if (!tracks.length || box.width < 2 || box.height < 2 || style.visibility === 'hidden' || style.display === 'none') continue;
        const frames = v.getVideoPlaybackQuality().totalVideoFrames;
        const p = { remote: tracks.some((t) => remote.has(t)), width: v.videoWidth, height: v.videoHeight, frames, moving: frames > (last.get(v) ?? frames), live: tracks.some((t) => t.readyState === 'live') };
        last.set(v, frames);
        if (v.videoWidth && v.readyState >= 2) {
          g.drawImage(v, 0, 0, 16, 9);
          const d = g.getImageData(0, 0, 16, 9).data;
          const sum = [0, 0, 0];
          for (let i = 0; i < d.length; i += 4) for (let c = 0; c < 3; c++) sum[c] += d[i + c];
          p.rgb = sum.map((s) => Math.round(s / (d.length / 4)));
        }
        out.push(p);
      }
      return out;
    },

    // levels returns the level in dB at each frequency of what the page plays
    // now: remote audio in elements that play and are not muted.
    levels(frequencies) {
      audio ??= new AudioContext();
      if (audio.state === 'suspended') audio.resume();
      const remote = remoteTracks();
      const audible = new Set();
      for (const e of elements) {
        if (e.paused || e.muted || e.volume === 0) continue;
        for (const t of e.srcObject?.getAudioTracks?.() ?? []) {
          if (remote.has(t) && t.readyState === 'live' && t.enabled) audible.add(t);
        }
      }
      for (const [track, a] of analysers) {
        if (audible.has(track)) continue;
        a.source.disconnect();
        analysers.delete(track);
      }
      for (const track of audible) {
        if (analysers.has(track)) continue;
        const node = audio.createAnalyser();
        node.fftSize = 8192;
        node.smoothingTimeConstant = 0;
        const stream = audio.createMediaStreamSource(new MediaStream([track]));
        stream.connect(node);
        analysers.set(track, { node, source: stream });
      }
      const levels = frequencies.map(() => -200);
      for (const { node } of analysers.values()) {
        const bins = new Float32Array(node.frequencyBinCount);
        node.getFloatFrequencyData(bins);
        frequencies.forEach((f, i) => {
          const bin = Math.round((f * node.fftSize) / audio.sampleRate);
          for (let b = bin - 2; b <= bin + 2; b++) if (bins[b] > levels[i]) levels[i] = bins[b];
        });
      }
      return levels.map((v) => Math.round(v));
    },
  };
}
