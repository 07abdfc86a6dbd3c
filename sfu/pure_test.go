package sfu

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

func TestRenumbererClosesTheGapsItMakes(t *testing.T) {
	type step struct {
		do  string // "next", "skip", "restart"
		in  uint16
		out uint16
		ok  bool
	}
	for name, steps := range map[string][]step{
		"the first source keeps its numbers": {
			{"next", 65534, 65534, true}, {"next", 65535, 65535, true}, {"next", 0, 0, true},
		},
		"real loss stays visible": {{"next", 10, 10, true}, {"next", 13, 13, true}, {"next", 11, 11, true}},
		"left-out packets leave no gap": {
			{"next", 10, 10, true}, {"skip", 11, 0, true}, {"next", 12, 11, true}, {"skip", 13, 0, true},
			{"skip", 14, 0, true}, {"next", 15, 12, true},
		},
		"a late packet from before the gap keeps its place": {
			{"next", 10, 10, true}, {"next", 12, 12, true}, {"skip", 13, 0, true}, {"next", 14, 13, true},
			{"next", 11, 11, true}, {"next", 15, 14, true},
		},
		"a new source continues": {
			{"next", 100, 100, true}, {"next", 101, 101, true}, {"restart", 5000, 0, true}, {"next", 5000, 102, true},
			{"next", 5001, 103, true},
		},
		"the old source's stragglers have no place after a switch": {
			{"next", 100, 100, true}, {"restart", 5000, 0, true}, {"next", 5000, 101, true}, {"next", 4999, 0, false},
		},
		"over the wrap": {
			{"next", 65535, 65535, true}, {"skip", 0, 0, true}, {"next", 1, 0, true}, {"next", 2, 1, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r renumberer
			for i, s := range steps {
				switch s.do {
				case "skip":
					r.skip(s.in, 0)
				case "restart":
					r.restart(s.in, vp8Shift{})
				default:
					out, _, ok := r.next(s.in)
					if ok != s.ok || ok && out != s.out {
						t.Errorf("step %d: %d becomes %d, %v; want %d, %v", i, s.in, out, ok, s.out, s.ok)
					}
				}
			}
		})
	}
}

func TestRenumbererGoesOnForHours(t *testing.T) {
	for name, skipEvery := range map[string]int{"nothing left out": 0, "a third left out": 3, "few left out": 5000} {
		t.Run(name, func(t *testing.T) {
			var r renumberer
			want, in := uint16(60000), uint16(60000)
			for i := range 300_000 {
				if skipEvery > 0 && i%skipEvery == 1 {
					r.skip(in, 0)
				} else {
					out, _, ok := r.next(in)
					if !ok || out != want {
						t.Fatalf("packet %d: %d, %v, want %d: the stream has stopped", i, out, ok, want)
					}
					want++
				}
				in++
			}
		})
	}
}

func TestRenumbererSurvivesJumpsOfTheSource(t *testing.T) {
	for _, jump := range []uint16{100, 0x7ffe, 0x8000, 0x8001, 0xff00} {
		var r renumberer
		in := uint16(1000)
		for range 50 {
			r.next(in)
			in++
		}
		in += jump
		passed := 0
		for range 100 {
			if _, _, ok := r.next(in); ok {
				passed++
			}
			in++
		}
		if passed < 70 {
			t.Errorf("after a jump by %d only %d of 100 packets pass", jump, passed)
		}
	}
}

func TestVP8DescriptorRoundTrip(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want vp8Header
		ok   bool
	}{
		"empty":                       {nil, vp8Header{}, false},
		"no extension, key frame":     {[]byte{0x10, 0x00}, vp8Header{size: 1, start: true, key: true}, true},
		"no extension, delta frame":   {[]byte{0x10, 0x01}, vp8Header{size: 1, start: true}, true},
		"middle of a frame":           {[]byte{0x00, 0x00}, vp8Header{size: 1}, true},
		"second partition":            {[]byte{0x11, 0x00}, vp8Header{size: 1}, true},
		"extension cut off":           {[]byte{0x90}, vp8Header{}, false},
		"picture ID cut off":          {[]byte{0x90, 0x80}, vp8Header{}, false},
		"wide picture ID cut off":     {[]byte{0x90, 0x80, 0x81}, vp8Header{}, false},
		"short picture ID":            {[]byte{0x90, 0x80, 0x7f, 0x01}, vp8Header{size: 3, start: true, hasPID: true, pid: 127, pidAt: 2}, true},
		"wide picture ID":             {[]byte{0x90, 0x80, 0x81, 0x02, 0x00}, vp8Header{size: 4, start: true, key: true, hasPID: true, wide: true, pid: 0x102, pidAt: 2}, true},
		"everything":                  {[]byte{0x90, 0xf0, 0x81, 0x02, 0x07, 0xa5, 0x01}, vp8Header{size: 6, start: true, hasPID: true, wide: true, pid: 0x102, pidAt: 2, hasTL0: true, tl0: 7, tl0At: 4, hasTID: true, tid: 2, sync: true, hasKey: true, keyIdx: 5, keyAt: 5}, true},
		"descriptor without any data": {[]byte{0x90, 0x80, 0x01}, vp8Header{size: 3, start: true, hasPID: true, pid: 1, pidAt: 2}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := parseVP8(c.in)
			if ok != c.ok || ok && got != c.want {
				t.Fatalf("got %+v, %v; want %+v, %v", got, ok, c.want, c.ok)
			}
			if !ok {
				return
			}
			b := slices.Clone(c.in)
			got.patch(b, 0x55, 0x66, 0x07)
			again, ok := parseVP8(b)
			if !ok || again.size != got.size || again.key != got.key || again.tid != got.tid ||
				got.hasPID && again.pid != 0x55 || got.hasTL0 && again.tl0 != 0x66 || got.hasKey && again.keyIdx != 7 {
				t.Errorf("after patching: %+v", again)
			}
			got.patch(b, got.pid, got.tl0, got.keyIdx)
			if !slices.Equal(b, c.in) {
				t.Error("patching back does not restore the payload")
			}
		})
	}
}

func TestVP8ShiftContinuesNumbers(t *testing.T) {
	h := vp8Header{hasPID: true, pid: 3, hasTL0: true, tl0: 200, hasKey: true, keyIdx: 1}
	s := h.continueAfter(0x7fff, 255, 31)
	if pid, tl0, key := s.apply(h); pid != 0 || tl0 != 0 || key != 0 {
		t.Errorf("first picture after the switch is %d %d %d, want all 0 (wrapped)", pid, tl0, key)
	}
	h.pid++
	if pid, _, _ := s.apply(h); pid != 1 {
		t.Errorf("second picture is %d", pid)
	}
}

func TestKeyFramesAreRecognised(t *testing.T) {
	for name, c := range map[string]struct {
		f       format
		payload []byte
		dd      []byte
		want    bool
	}{
		"H.264 SPS":                       {formatH264, []byte{0x67, 1}, nil, true},
		"H.264 IDR":                       {formatH264, []byte{0x65, 1}, nil, true},
		"H.264 slice":                     {formatH264, []byte{0x41, 1}, nil, false},
		"H.264 STAP-A with SPS":           {formatH264, []byte{0x78, 0, 2, 0x67, 0, 0, 1, 0x68}, nil, true},
		"H.264 STAP-A without":            {formatH264, []byte{0x78, 0, 2, 0x61, 0, 0, 1, 0x68}, nil, false},
		"H.264 STAP-A with a length lie":  {formatH264, []byte{0x78, 0xff, 0xff, 0x61, 0}, nil, false},
		"H.264 FU-A starts IDR":           {formatH264, []byte{0x7c, 0x85}, nil, true},
		"H.264 FU-A goes on":              {formatH264, []byte{0x7c, 0x05}, nil, false},
		"H.264 FU-A cut off":              {formatH264, []byte{0x7c}, nil, false},
		"VP9 key":                         {formatVP9, []byte{0x88, 0x81, 0x01}, nil, true},
		"VP9 delta":                       {formatVP9, []byte{0xc8, 0x81, 0x01}, nil, false},
		"VP9 key, higher spatial layer":   {formatVP9, []byte{0xa8, 0x01, 0x02}, nil, false},
		"VP9 key, base layer":             {formatVP9, []byte{0xa8, 0x01, 0x00}, nil, true},
		"VP9 cut off":                     {formatVP9, []byte{0xa8}, nil, false},
		"VP9 by dependency descriptor":    {formatVP9, []byte{0xff}, []byte{0x80, 0, 1, 0x80}, true},
		"VP9 delta by descriptor":         {formatVP9, []byte{0x88}, []byte{0x80, 0, 1}, false},
		"AV1 new sequence":                {formatAV1, []byte{0x18, 0x0a}, nil, true},
		"AV1 continued":                   {formatAV1, []byte{0x10, 0x0a}, nil, false},
		"AV1 encrypted key by descriptor": {formatAV1, []byte{0x00}, []byte{0x80, 0, 1, 0x80, 0}, true},
		"nothing":                         {formatH264, nil, nil, false},
	} {
		if got := c.f.startsKeyFrame(c.payload, c.dd); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

var threeLayers = []Layer{
	{Quality: QualityLow, Width: 320, Height: 180},
	{Quality: QualityMedium, Width: 640, Height: 360},
	{Quality: QualityHigh, Width: 1280, Height: 720},
}

func TestWantedLayer(t *testing.T) {
	for name, c := range map[string]struct {
		layers []Layer
		st     TrackSettings
		want   int
		q      Quality
	}{
		"no layers":                          {nil, TrackSettings{Quality: QualityHigh}, 0, QualityHigh},
		"the only layer serves everybody":    {threeLayers[:1], TrackSettings{Quality: QualityHigh}, 0, QualityHigh},
		"by quality":                         {threeLayers, TrackSettings{Quality: QualityMedium}, 1, QualityMedium},
		"a thumbnail":                        {threeLayers, TrackSettings{Width: 100, Height: 60}, 0, QualityLow},
		"exactly the middle":                 {threeLayers, TrackSettings{Width: 640, Height: 360}, 1, QualityMedium},
		"slightly more than the middle":      {threeLayers, TrackSettings{Width: 650, Height: 370}, 1, QualityMedium},
		"clearly more than the middle":       {threeLayers, TrackSettings{Width: 800, Height: 450}, 2, QualityHigh},
		"more than there is":                 {threeLayers, TrackSettings{Width: 3840, Height: 2160}, 2, QualityHigh},
		"a portrait tile":                    {threeLayers, TrackSettings{Width: 180, Height: 320}, 0, QualityLow},
		"two layers of a screen, high asked": {threeLayers[:2], TrackSettings{Quality: QualityHigh}, 1, QualityMedium},
	} {
		if got := wantedLayer(c.layers, c.st); got != c.want {
			t.Errorf("%s: layer %d, want %d", name, got, c.want)
		}
		if got := wantedQuality(c.layers, c.st); got != c.q {
			t.Errorf("%s: quality %d, want %d", name, got, c.q)
		}
	}
}

func TestChooseLayer(t *testing.T) {
	for _, c := range []struct {
		want int
		live [maxLayers]bool
		got  int
	}{
		{2, [maxLayers]bool{true, true, true}, 2},
		{2, [maxLayers]bool{true, true, false}, 1},
		{0, [maxLayers]bool{false, false, true}, 2},
		{1, [maxLayers]bool{}, -1},
		{9, [maxLayers]bool{true, false, false}, 0},
		{-1, [maxLayers]bool{true, true, true}, 0},
	} {
		if got := chooseLayer(c.want, c.live); got != c.got {
			t.Errorf("want %d of %v: %d, not %d", c.want, c.live, got, c.got)
		}
	}
}

func TestDynacastRisesAtOnceAndFallsLater(t *testing.T) {
	now := time.Unix(1000, 0)
	var d dynacast
	expect := func(what string, told, want bool, q Quality) {
		t.Helper()
		if told != want || d.current != q {
			t.Errorf("%s: told %v, quality %d; want %v, %d", what, told, d.current, want, q)
		}
	}
	expect("the first viewer", d.want(QualityLow, now), true, QualityLow)
	expect("somebody wants more", d.want(QualityHigh, now), true, QualityHigh)
	expect("and goes away", d.want(QualityLow, now), false, QualityHigh)
	expect("soon after", d.tick(now.Add(4*time.Second)), false, QualityHigh)
	expect("and comes back", d.want(QualityHigh, now.Add(4*time.Second)), false, QualityHigh)
	expect("no fall left over", d.tick(now.Add(20*time.Second)), false, QualityHigh)
	expect("nobody watches", d.want(QualityOff, now.Add(20*time.Second)), false, QualityHigh)
	expect("somebody watches little", d.want(QualityLow, now.Add(21*time.Second)), false, QualityHigh)
	expect("the fall", d.tick(now.Add(25*time.Second)), true, QualityLow)
	expect("nobody watches", d.want(QualityOff, now.Add(30*time.Second)), false, QualityLow)
	expect("off", d.tick(now.Add(35*time.Second)), true, QualityOff)
	for _, q := range d.qualities() {
		if q.Enabled {
			t.Errorf("quality %d is on though nobody watches", q.Quality)
		}
	}
	expect("a viewer", d.want(QualityMedium, now.Add(36*time.Second)), true, QualityMedium)
	if got := fmt.Sprint(d.qualities()); got != "[{0 true} {1 true} {2 false}]" {
		t.Errorf("qualities: %s", got)
	}
}

func TestSpeakerDelta(t *testing.T) {
	before := speakerMap{"a": 0.5, "b": 0.25, "c": 0.125}
	now := speakerMap{"a": 0.5, "b": 1, "d": 0.375}
	want := []Speaker{{"b", 1, true}, {"d", 0.375, true}, {"c", 0, false}}
	if got := speakerDelta(before, now); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := speakerDelta(now, now); len(got) != 0 {
		t.Errorf("no change is told: %v", got)
	}
	for in, out := range map[float64]float32{0: 0, 0.001: 0.125, 0.125: 0.125, 0.13: 0.25, 1: 1, 7: 1, -1: 0} {
		if got := quantise(in); got != out {
			t.Errorf("quantise %v: %v, want %v", in, got, out)
		}
	}
}

func TestAudioMeter(t *testing.T) {
	window := func(m *audioMeter, speech, silence int, level uint8) float64 {
		for range speech {
			m.observe(level)
		}
		for range silence {
			m.observe(127)
		}
		return m.take(time.Time{})
	}
	var m audioMeter
	if l := window(&m, 0, 20, 0); l != 0 {
		t.Errorf("silence is %v loud", l)
	}
	if l := window(&m, 7, 13, 10); l != 0 {
		t.Errorf("a cough is speech of level %v", l)
	}
	if l := window(&m, 20, 0, 36); l != 0 {
		t.Errorf("a whisper below the threshold is %v loud", l)
	}
	soft := window(&m, 20, 0, 30)
	loud := window(&m, 20, 0, 5)
	if soft <= 0 || loud <= soft {
		t.Errorf("soft %v, loud %v", soft, loud)
	}
	window(&m, 0, 20, 0)
	if l := window(&m, 0, 0, 0); l != 0 {
		t.Errorf("still %v loud two windows after the end", l)
	}
}

func TestPolicy(t *testing.T) {
	everybody := newPolicy(true, nil)
	some := newPolicy(false, []TrackPermission{
		{Identity: "bob", TrackSIDs: []call.TrackSID{"TR_1"}}, {SID: "PA_carol", AllTracks: true},
	})
	for name, c := range map[string]struct {
		p    policy
		id   call.Identity
		sid  call.ParticipantSID
		want bool
	}{
		"everybody":               {everybody, "x", "PA_x", true},
		"the zero policy":         {policy{}, "x", "PA_x", true},
		"by identity":             {some, "bob", "PA_bob", true},
		"by SID":                  {some, "carol", "PA_carol", true},
		"not listed":              {some, "dave", "PA_dave", false},
		"identity beats SID":      {newPolicy(false, []TrackPermission{{Identity: "bob", SID: "PA_x", AllTracks: true}}), "x", "PA_x", false},
		"nobody":                  {newPolicy(false, nil), "bob", "PA_bob", false},
		"an entry without a name": {newPolicy(false, []TrackPermission{{AllTracks: true}}), "x", "PA_x", false},
	} {
		if got := c.p.allows(c.id, c.sid, "TR_1"); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if some.allows("bob", "PA_bob", "TR_2") {
		t.Error("bob may have one track but gets another")
	}
}

func TestMatchCodec(t *testing.T) {
	h264 := func(pt webrtc.PayloadType, mode, profile string) webrtc.RTPCodecParameters {
		return webrtc.RTPCodecParameters{PayloadType: pt, RTPCodecCapability: webrtc.RTPCodecCapability{
			MimeType: webrtc.MimeTypeH264, SDPFmtpLine: "packetization-mode=" + mode + ";profile-level-id=" + profile,
		}}
	}
	have := []webrtc.RTPCodecParameters{
		{PayloadType: 96, RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: "video/vp8"}},
		{PayloadType: 97, RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeRTX, SDPFmtpLine: "apt=96"}},
		h264(102, "0", "42e01f"), h264(104, "1", "42001f"), h264(106, "1", "42e01f"),
		{PayloadType: 100, RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP9, SDPFmtpLine: "profile-id=2"}},
	}
	for name, c := range map[string]struct {
		want   webrtc.RTPCodecCapability
		pt, rt webrtc.PayloadType
		ok     bool
	}{
		"VP8 with retransmission": {webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8}, 96, 97, true},
		"same H.264 profile":      {h264(0, "1", "42e01f").RTPCodecCapability, 106, 0, true},
		"other level":             {h264(0, "1", "42e034").RTPCodecCapability, 106, 0, true},
		"single NAL units":        {h264(0, "0", "42e01f").RTPCodecCapability, 102, 0, true},
		"VP9 of another profile":  {webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP9, SDPFmtpLine: "profile-id=0"}, 0, 0, false},
		"not negotiated":          {webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeAV1}, 0, 0, false},
	} {
		got, rtx, ok := matchCodec(c.want, have)
		if ok != c.ok || ok && (got.PayloadType != c.pt || rtx != c.rt) {
			t.Errorf("%s: %d, %d, %v", name, got.PayloadType, rtx, ok)
		}
	}
}

func TestLossMeter(t *testing.T) {
	var l lossMeter
	if _, any := l.take(); any {
		t.Error("loss of a stream without packets")
	}
	for _, seq := range []uint16{65534, 65535, 1, 2, 0, 6} { // 0 came late, 3, 4 and 5 never
		l.add(seq)
	}
	if share, any := l.take(); !any || share < 0.3 || share > 0.35 {
		t.Errorf("share %v, want 3 of 9", share)
	}
}

func TestScore(t *testing.T) {
	for name, c := range map[string]struct {
		s    linkState
		want ConnectionQuality
	}{
		"nothing wrong":          {linkState{}, ConnectionExcellent},
		"one percent":            {linkState{down: 0.01}, ConnectionExcellent},
		"five percent":           {linkState{up: 0.05}, ConnectionGood},
		"fifteen percent":        {linkState{down: 0.15}, ConnectionPoor},
		"far away":               {linkState{rtt: 500 * time.Millisecond}, ConnectionGood},
		"on the moon":            {linkState{rtt: 2500 * time.Millisecond}, ConnectionPoor},
		"less video than wanted": {linkState{limited: true}, ConnectionGood},
		"gone":                   {linkState{lost: true}, ConnectionLost},
	} {
		if got, score := c.s.score(); got != c.want {
			t.Errorf("%s: quality %d, score %v; want %d", name, got, score, c.want)
		}
	}
}

func TestCongestionLadder(t *testing.T) {
	now := time.Unix(1000, 0)
	c := congestion{max: 3}
	at := func(sec int) time.Time { return now.Add(time.Duration(sec) * time.Second) }
	fine, lossy := linkSample{sent: 1e6, estimate: 2e6}, linkSample{sent: 1e6, loss: 0.2}
	tight := linkSample{sent: 1e6, estimate: 500_000}
	for i, s := range []struct {
		sec   int
		in    linkSample
		steps int
	}{
		{0, fine, 0}, {1, lossy, 0}, {2, lossy, 1}, // not for a single report
		{3, lossy, 1},               // the step must have time to work
		{5, fine, 1}, {6, tight, 1}, // nor for a moment's low estimate
		{9, tight, 2}, {12, fine, 2}, {16, fine, 1},
		{17, lossy, 1}, {19, lossy, 2}, // the try failed at once
		{27, fine, 2}, {32, fine, 1}, // so the next one waits longer
		{60, fine, 0}, {70, lossy, 0}, {71, lossy, 1},
	} {
		if c.observe(s.in, at(s.sec)); c.steps != s.steps {
			t.Errorf("observation %d at %d s: %d steps, want %d", i, s.sec, c.steps, s.steps)
		}
	}
}

func TestShareLowersTheLeastImportantFirst(t *testing.T) {
	videos := []demand{{want: 2}, {want: 2, screen: true}, {want: 1}}
	for steps, want := range [][]int{{2, 2, 1}, {1, 2, 1}, {0, 2, 1}, {0, 2, 0}, {0, 1, 0}, {0, 0, 0}, {0, 0, 0}} {
		if got := share(steps, 0, videos); !slices.Equal(got, want) {
			t.Errorf("%d steps: %v, want %v", steps, got, want)
		}
	}
	if got := share(99, -1, videos); !slices.Equal(got, []int{-1, -1, -1}) {
		t.Errorf("with pauses allowed: %v", got)
	}
}

func TestClockMapTranslates(t *testing.T) {
	// Two layers of one source: at the same wall-clock second one shows 1000,
	// the other 900000 half a second later.
	a := &clockMap{ntp: 100 << 32, rtp: 1000}
	b := &clockMap{ntp: 100<<32 + 1<<31, rtp: 900000}
	if got := a.translate(1000+90000, b, 90000); got != 900000+45000 {
		t.Errorf("one second on: %d, want %d", got, 900000+45000)
	}
	if got := b.translate(900000, a, 90000); got != 1000+45000 {
		t.Errorf("the other way: %d", got)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add([]byte{0x80, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0x90, 0x80, 0x81, 2, 0}, uint8(1))
	f.Add([]byte{0xbf, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0xbe, 0xde, 0xff, 0xff}, uint8(1)) // all flags, lying length
	f.Add([]byte{0xa0, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 9}, uint8(2))                      // more padding than packet
	f.Add([]byte{0x90, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0x10, 0, 0, 1, 1, 2, 3, 0, 0x78, 0xff}, uint8(3))
	f.Fuzz(func(t *testing.T, raw []byte, kind uint8) {
		var p packet
		if !p.parse(raw) {
			return
		}
		for id := range uint8(16) {
			p.dd = p.header.GetExtension(id)
			_ = p.describe(format(kind % 5))
		}
		if len(p.payload) > len(raw) {
			t.Error("payload longer than packet")
		}
	})
}

func FuzzVP8Patch(f *testing.F) {
	f.Add([]byte{0x90, 0xf0, 0x81, 0x02, 0x07, 0xa5, 0x01}, uint16(5), uint8(6), uint8(7))
	f.Add([]byte{0x90, 0x80, 0x7f}, uint16(0x7fff), uint8(255), uint8(31))
	f.Fuzz(func(t *testing.T, b []byte, pid uint16, tl0, key uint8) {
		h, ok := parseVP8(b)
		if !ok {
			return
		}
		orig := slices.Clone(b)
		h.patch(b, pid, tl0, key)
		if again, ok := parseVP8(b); !ok || again.size != h.size || again.key != h.key || again.tid != h.tid {
			t.Errorf("patched descriptor reads as %+v, was %+v", again, h)
		}
		h.patch(b, h.pid, h.tl0, h.keyIdx)
		if !slices.Equal(b, orig) {
			t.Error("patching back does not restore the payload")
		}
	})
}
