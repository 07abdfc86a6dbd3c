package audio

import "testing"

// A segment describes a part of a law as ITU-T G.711 tables 1 and 2 do: its end and the
// distance of decision values in it. Values are of the positive side.
type segment struct{ end, step int }

// Columns 1 to 3 of the tables: (number of intervals x size) gives the ends.
var (
	alawSegments = []segment{{64, 2}, {128, 4}, {256, 8}, {512, 16}, {1024, 32}, {2048, 64}, {4096, 128}}
	ulawSegments = []segment{{31, 2}, {95, 4}, {223, 8}, {479, 16}, {991, 32}, {2015, 64}, {4063, 128}, {8159, 256}}
)

// intervals returns, for each magnitude below the last segment's end, the number of
// its interval and the value decoded from it.
func intervals(segs []segment, firstShort bool) (number, value []int) {
	at, n := 0, 0
	if firstShort { // mu-law's first interval is [0, 1) and decodes to 0
		number, value = []int{0}, []int{0}
		at, n = 1, 1
	}
	for _, s := range segs {
		for at < s.end {
			for range s.step {
				number, value = append(number, n), append(value, at+s.step/2)
			}
			at += s.step
			n++
		}
	}
	return number, value
}

func TestG711AgreesWithTheRecommendationOnEverySample(t *testing.T) {
	for _, law := range []struct {
		name        string
		segs        []segment
		mu          bool
		shift       int // from 16 bits to the recommendation's 13 or 14
		encode      func(int16) byte
		decode      *[256]int16
		plus, minus byte // the code of interval 0 of either sign, before the mask
		mask        byte // bits inverted on the wire
	}{
		{"mu-law", ulawSegments, true, 2, EncodeULaw, &ulawValues, 0x80, 0x00, 0x7f},
		{"A-law", alawSegments, false, 3, EncodeALaw, &alawValues, 0x80, 0x00, 0x55},
	} {
		number, value := intervals(law.segs, law.mu)
		if n := number[len(number)-1]; n != 127 {
			t.Fatalf("%s: the table of this test has %d intervals a side, want 128", law.name, n+1)
		}
		seen := map[byte]bool{}
		for x := -32768; x <= 32767; x++ {
			magnitude, sign := x, law.plus
			if x < 0 {
				magnitude, sign = ^x, law.minus
			}
			at := min(magnitude>>law.shift, len(number)-1)
			want := (sign | byte(number[at])) ^ law.mask
			got := law.encode(int16(x))
			seen[got] = true
			if got != want {
				t.Fatalf("%s: code of %d is %#02x, want %#02x", law.name, x, got, want)
			}
			sound := value[at] << law.shift
			if x < 0 {
				sound = -sound
			}
			if int(law.decode[got]) != sound {
				t.Fatalf("%s: code %#02x sounds %d, want %d", law.name, got, law.decode[got], sound)
			}
		}
		if len(seen) != 256 {
			t.Errorf("%s: %d codes are used, want 256", law.name, len(seen))
		}
	}
}

func TestG711KnownCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		got  byte
		want byte
	}{
		{"mu-law silence", EncodeULaw(0), 0xff},
		{"mu-law positive peak", EncodeULaw(32767), 0x80},
		{"mu-law negative peak", EncodeULaw(-32768), 0x00},
		{"A-law silence", EncodeALaw(0), 0xd5},
		{"A-law positive peak", EncodeALaw(32767), 0xaa},
		{"A-law negative peak", EncodeALaw(-32768), 0x2a},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#02x, want %#02x", c.name, c.got, c.want)
		}
	}
}

func TestG711Quality(t *testing.T) {
	pcm := speech(8000, 16000, 1)
	for _, codec := range []Codec{PCMU, PCMA} {
		_, snr := fit(pcm, roundTrip(t, codec, pcm))
		t.Logf("%s: speech %.1f dB", codec, snr)
		if snr < 34 {
			t.Errorf("%s: SNR of speech is %.1f dB, want 34", codec, snr)
		}
	}
}
