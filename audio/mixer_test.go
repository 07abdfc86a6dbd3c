package audio

import (
	"slices"
	"testing"
)

// settle runs ticks in which each source says its sound, so that fades are over.
func settle(m *Mixer, ticks int, sounds map[*Source][]int16) {
	for range ticks {
		for s, pcm := range sounds {
			s.Write(pcm)
		}
		m.Mix()
	}
}

func TestEverybodyHearsAllButThemselves(t *testing.T) {
	m := NewMixer(8000, 3)
	a, b, quiet := m.Add(), m.Add(), m.Add()
	low, high := sine(8000, 400, 0.2, 160), sine(8000, 1000, 0.3, 160)
	settle(m, 3, map[*Source][]int16{a: low, b: high})
	got := make([]int16, 160)
	for _, c := range []struct {
		name string
		read func([]int16)
		want func(i int) int16
	}{
		{"a hears b", a.Read, func(i int) int16 { return high[i] }},
		{"b hears a", b.Read, func(i int) int16 { return low[i] }},
		{"a silent member hears both", quiet.Read, func(i int) int16 { return low[i] + high[i] }},
		{"so does a listener", m.Read, func(i int) int16 { return low[i] + high[i] }},
	} {
		c.read(got)
		for i := range got {
			if got[i] != c.want(i) {
				t.Errorf("%s: sample %d is %d, want %d", c.name, i, got[i], c.want(i))
				break
			}
		}
	}
	if a.Level() < 16 || a.Level() > 18 { // 0.2 of full scale, a sine: -17 dBov
		t.Errorf("level of a is -%d dBov, want -17", a.Level())
	}
	m.Remove(b)
	settle(m, 1, map[*Source][]int16{a: low})
	m.Read(got)
	if !slices.Equal(got, low) {
		t.Error("who has left is still heard")
	}
}

func TestTheLoudestAreHeard(t *testing.T) {
	m := NewMixer(8000, 3)
	sounds := map[*Source][]int16{}
	var sources []*Source
	for i := range 6 {
		s := m.Add()
		sources = append(sources, s)
		sounds[s] = sine(8000, 400, 0.02*float64(i+1)*float64(i+1), 160)
	}
	heard := func() (who []int) {
		for i, s := range sources {
			if s.Heard() {
				who = append(who, i)
			}
		}
		return who
	}
	settle(m, 2, sounds)
	if got := heard(); !slices.Equal(got, []int{3, 4, 5}) {
		t.Fatalf("heard are %v, want the last three", got)
	}
	sounds[sources[2]] = sine(8000, 400, 0.4, 160) // louder than 3, by 2 dB only
	settle(m, 20, sounds)
	if got := heard(); !slices.Equal(got, []int{3, 4, 5}) {
		t.Errorf("a little louder is enough to interrupt: %v", got)
	}
	sounds[sources[2]] = sine(8000, 400, 0.9, 160)
	settle(m, 2, sounds)
	if got := heard(); !slices.Equal(got, []int{2, 4, 5}) {
		t.Errorf("clearly louder does not interrupt: %v", got)
	}
	delete(sounds, sources[5])
	settle(m, 3, sounds)
	if !sources[5].Heard() {
		t.Error("a pause of 60 ms loses the floor")
	}
	settle(m, 40, sounds)
	if got := heard(); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("after a long pause heard are %v, want 2 3 4", got)
	}
}

func TestChangesDoNotClick(t *testing.T) {
	m := NewMixer(8000, 1)
	a := m.Add()
	constant := slices.Repeat([]int16{8000}, 160)
	var all []int16
	got := make([]int16, 160)
	for tick := range 6 {
		if tick == 3 {
			a.SetGain(0)
		}
		a.Write(constant)
		m.Mix()
		m.Read(got)
		all = append(all, got...)
	}
	for i := 1; i < len(all); i++ {
		if d := int(all[i]) - int(all[i-1]); d > 200 || d < -200 {
			t.Fatalf("a step of %d at sample %d", d, i)
		}
	}
	if all[400] != 8000 || all[len(all)-1] != 0 {
		t.Errorf("in the middle %d, muted %d", all[400], all[len(all)-1])
	}
}

func TestLimit(t *testing.T) {
	last := int16(-32768)
	for v := int32(-400000); v <= 400000; v++ {
		got := limit(v)
		if got < last {
			t.Fatalf("not monotonic at %d", v)
		}
		if last = got; v >= -23197 && v <= 23197 && int32(got) != v {
			t.Fatalf("%d below the knee became %d", v, got)
		}
	}
}

func BenchmarkMixer(b *testing.B) {
	m := NewMixer(8000, 3)
	var all []*Source
	for range 50 {
		all = append(all, m.Add())
	}
	talk := speech(8000, 16000, 4)
	out := make([]int16, 160)
	b.ReportAllocs()
	at := 0
	for b.Loop() {
		for i, s := range all[:3] {
			s.Write(talk[at+i*160 : at+i*160+160])
		}
		m.Mix()
		for _, s := range all {
			s.Read(out)
		}
		at = (at + 160) % 15000
	}
}

func TestMixingDoesNotAllocate(t *testing.T) {
	m := NewMixer(16000, 3)
	var all []*Source
	for range 10 {
		all = append(all, m.Add())
	}
	pcm, out := speech(16000, 320, 9), make([]int16, 320)
	if n := testing.AllocsPerRun(100, func() {
		for _, s := range all {
			s.Write(pcm)
		}
		m.Mix()
		for _, s := range all {
			s.Read(out)
		}
	}); n != 0 {
		t.Errorf("%v allocations a tick", n)
	}
}
