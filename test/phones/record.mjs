// record writes what a page hears to a WAV file: 16 bit, mono, 48 kHz. With who,
// only what comes from that participant of the test page.
import { writeFileSync } from 'node:fs';

export async function record(page, { who, ms, file }) {
  const base64 = await page.evaluate(recordInPage, { who, ms });
  const pcm = Buffer.from(base64, 'base64');
  const head = Buffer.alloc(44);
  head.write('RIFF', 0);
  head.writeUInt32LE(36 + pcm.length, 4);
  head.write('WAVEfmt ', 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(48_000, 24);
  head.writeUInt32LE(96_000, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write('data', 36);
  head.writeUInt32LE(pcm.length, 40);
  writeFileSync(file, Buffer.concat([head, pcm]));
  return { seconds: pcm.length / 96_000 };
}

async function recordInPage({ who, ms }) {
  const tracks = new Set();
  if (who) {
    for (const e of document.querySelectorAll('audio')) {
      if (e.dataset.who === who) for (const t of e.srcObject?.getAudioTracks() ?? []) tracks.add(t);
    }
  } else {
    for (const pc of window.__probe.connections) {
      if (pc.connectionState === 'closed') continue;
      for (const r of pc.getReceivers()) if (r.track.kind === 'audio' && r.track.readyState === 'live') tracks.add(r.track);
    }
  }
  const audio = new AudioContext({ sampleRate: 48_000 });
  await audio.resume();
  const code = `registerProcessor('tape', class extends AudioWorkletProcessor {
    constructor() { super(); this.all = []; }
    process([input]) {
      // Every block counts, also one in which nobody sends: time goes on.
      this.all.push(input[0] ? input[0].slice() : new Float32Array(128));
      if (this.all.length === 100) { this.port.postMessage(this.all); this.all = []; }
      return true;
    }
  })`;
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  const tape = new AudioWorkletNode(audio, 'tape', { numberOfInputs: 1, numberOfOutputs: 1, channelCount: 1, channelCountMode: 'explicit' });
  const blocks = [];
  tape.port.onmessage = (e) => blocks.push(...e.data);
  for (const t of tracks) audio.createMediaStreamSource(new MediaStream([t])).connect(tape);
  const quiet = audio.createGain();
  quiet.gain.value = 0;
  tape.connect(quiet).connect(audio.destination);
  const want = Math.ceil((ms / 1000) * 48_000);
  const deadline = performance.now() + ms + 20_000;
  while (blocks.length * 128 < want && performance.now() < deadline) await new Promise((r) => setTimeout(r, 50));
  await audio.close();
  const pcm = new Int16Array(Math.min(want, blocks.length * 128));
  for (let i = 0; i < pcm.length; i++) pcm[i] = Math.max(-1, Math.min(1, blocks[i >> 7][i & 127])) * 32767;
  const bytes = new Uint8Array(pcm.buffer);
  let text = '';
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}
