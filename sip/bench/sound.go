package bench

import (
	"math"
	"runtime"
	"syscall"
	"time"

	"github.com/trunkhall/trunkhall/audio/opus"
)

// speech returns n samples that cost a codec what voiced speech does: harmonics of a
// pitch that moves, under formants, in syllables.
func speech(rate, n int) []int16 {
	pcm := make([]int16, n)
	phase := 0.0
	for i := range pcm {
		t := float64(i) / float64(rate)
		pitch := 120 + 30*math.Sin(2*math.Pi*0.5*t) + 4*math.Sin(2*math.Pi*6*t)
		phase += 2 * math.Pi * pitch / float64(rate)
		v := 0.0
		for h := 1.0; h*pitch < 3300; h++ {
			f := h * pitch
			v += (1/(1+math.Pow((f-600)/160, 2)) + 0.5/(1+math.Pow((f-1700)/250, 2)) + 0.02) * math.Sin(h*phase)
		}
		syllable := 0.15 + 0.85*max(0, math.Sin(2*math.Pi*3*t))
		pcm[i] = int16(4500 * syllable * v)
	}
	return pcm
}

// yardstick returns how many microseconds of a thread's CPU one frame of 20 ms takes to
// encode to Opus at 8 kHz: the median of some passes over two seconds of speech. It is
// not the best of them, because what it is compared with is no best case either.
func yardstick() (float64, error) {
	cfg := opus.DefaultConfig(8000)
	cfg.DTX = false
	enc, err := opus.NewEncoder(cfg)
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pcm, out := speech(8000, 16000), make([]byte, opus.MaxPayload)
	var passes []float64
	for range 15 {
		from, frames := threadTime(), 0
		for rest := pcm; len(rest) > 0; rest = rest[160:] {
			if _, err := enc.Encode(rest[:160], out); err != nil {
				return 0, err
			}
			frames++
		}
		passes = append(passes, float64((threadTime()-from).Nanoseconds())/1000/float64(frames))
	}
	return middle(passes[1:]), nil // the first warms up
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	const thread = 1 // RUSAGE_THREAD of getrusage(2)
	var r syscall.Rusage
	if err := syscall.Getrusage(thread, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
