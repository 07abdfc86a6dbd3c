package audio

import (
	"errors"
	"math"
	"testing"
)

// roundTrip codes pcm frame by frame and returns what comes out, as long as pcm.
func roundTrip(t testing.TB, c Codec, pcm []int16) []int16 {
	t.Helper()
	enc, err := c.NewEncoder()
	if err != nil {
		t.Fatal(err)
	}
	dec, err := c.NewDecoder()
	if err != nil {
		t.Fatal(err)
	}
	size := FrameSamples(c.Rate())
	payload, frame := make([]byte, 1500), make([]int16, size*6)
	var out []int16
	for at := 0; at+size <= len(pcm); at += size {
		n, err := enc.Encode(pcm[at:at+size], payload)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && c.Ticks(payload[:n]) != c.Clock()/50 {
			t.Fatalf("%s: a frame of 20 ms counts %d units of time", c, c.Ticks(payload[:n]))
		}
		if n, err = dec.Decode(payload[:n], frame); err != nil || n != size {
			t.Fatalf("%s: %d samples, %v", c, n, err)
		}
		out = append(out, frame[:n]...)
	}
	return append(out, make([]int16, len(pcm)-len(out))...)
}

func TestG722Quality(t *testing.T) {
	const delay = 22 // samples at 16 kHz: two filters of 24 taps
	for _, hz := range []float64{50, 200, 440, 1000, 2000, 3000, 3800, 4200, 5000, 6000, 7000} {
		in := sine(16000, hz, 0.3, 16000)
		amplitude, snr := tonePart(roundTrip(t, G722, in)[3200:12800], 16000, hz)
		gain := 20 * math.Log10(amplitude/0.3)
		t.Logf("%4.0f Hz: gain %+.2f dB, SNR %.1f dB", hz, gain, snr)
		// ITU-T G.712-like mask: flat to 1 dB where telephones talk; G.722 §2.4.
		if math.Abs(gain) > 1 && hz != 3800 && hz != 4200 || math.Abs(gain) > 3 {
			t.Errorf("gain at %.0f Hz is %.2f dB", hz, gain)
		}
		if want := 30.0; hz <= 3000 && snr < want {
			t.Errorf("SNR at %.0f Hz is %.1f dB, want %.0f", hz, snr, want)
		}
		if hz >= 5000 && snr < 10 {
			t.Errorf("SNR at %.0f Hz is %.1f dB, want 10", hz, snr)
		}
	}
	in := speech(16000, 32000, 2)
	gain, snr := fit(in[:30000], roundTrip(t, G722, in)[delay:30000+delay])
	t.Logf("speech: gain %+.2f dB, SNR %.1f dB", gain, snr)
	if math.Abs(gain) > 0.3 || snr < 20 {
		t.Errorf("speech: gain %.2f dB, SNR %.1f dB", gain, snr)
	}
}

func TestOpusQuality(t *testing.T) {
	in := sine(16000, 440, 0.3, 16000)
	amplitude, snr := tonePart(roundTrip(t, Opus, in)[3200:12800], 16000, 440)
	t.Logf("440 Hz: gain %+.2f dB, SNR %.1f dB", 20*math.Log10(amplitude/0.3), snr)
	if math.Abs(amplitude-0.3) > 0.03 || snr < 15 {
		t.Errorf("440 Hz: amplitude %.3f of 0.3, SNR %.1f dB", amplitude, snr)
	}
}

func TestShortBuffersAreErrors(t *testing.T) {
	for _, c := range []Codec{PCMU, PCMA, G722} {
		enc, _ := c.NewEncoder()
		dec, _ := c.NewDecoder()
		if _, err := enc.Encode(make([]int16, 320), make([]byte, 10)); !errors.Is(err, ErrBuffer) {
			t.Errorf("%s: encoding into 10 octets: %v", c, err)
		}
		if _, err := dec.Decode(make([]byte, 160), make([]int16, 10)); !errors.Is(err, ErrBuffer) {
			t.Errorf("%s: decoding into 10 samples: %v", c, err)
		}
	}
	if _, err := Codec("GSM").NewDecoder(); err == nil {
		t.Error("there is a decoder for GSM")
	}
}

func FuzzDecoders(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0xff, 0x7f, 0x00, 0x80})
	f.Add([]byte{0x08, 0x0b, 0xe4, 0xc1, 0x36}) // SILK, narrow band
	f.Add([]byte{0x7b, 0x3f, 0xff, 0xff})       // a count of 63 frames
	f.Add([]byte{0xf8, 0xff, 0xfe})             // CELT silence
	decoders := map[Codec]Decoder{}
	for _, c := range []Codec{PCMU, PCMA, G722, Opus} {
		decoders[c], _ = c.NewDecoder()
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		for c, dec := range decoders {
			pcm := make([]int16, c.Rate()*int(MaxPacket.Milliseconds())/1000)
			n, err := dec.Decode(payload, pcm)
			if n < 0 || n > len(pcm) || err != nil && n != 0 {
				t.Fatalf("%s: %d samples, %v", c, n, err)
			}
			if ticks := c.Ticks(payload); err == nil && len(payload) > 0 && ticks > 0 && n*c.Clock() != ticks*c.Rate() {
				t.Fatalf("%s: %d samples from %d units of time", c, n, ticks)
			}
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	for _, c := range []Codec{PCMU, PCMA, G722, Opus} {
		pcm := speech(c.Rate(), c.Rate()*2, 3)
		size := FrameSamples(c.Rate())
		payload, frame := make([]byte, 1500), make([]int16, size)
		enc, _ := c.NewEncoder()
		var payloads [][]byte
		b.Run(string(c)+"/encode", func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := enc.Encode(pcm[i*size:(i+1)*size], payload); err != nil {
					b.Fatal(err)
				}
				i = (i + 1) % (len(pcm) / size)
			}
		})
		for at := 0; at < len(pcm); at += size {
			n, _ := enc.Encode(pcm[at:at+size], payload)
			payloads = append(payloads, append([]byte(nil), payload[:n]...))
		}
		dec, _ := c.NewDecoder()
		b.Run(string(c)+"/decode", func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := dec.Decode(payloads[i], frame); err != nil && len(payloads[i]) > 0 {
					b.Fatal(err)
				}
				i = (i + 1) % len(payloads)
			}
		})
	}
}
