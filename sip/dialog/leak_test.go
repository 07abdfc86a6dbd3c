package dialog

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestManyCalls makes 2,000 short calls between two endpoints and wants nothing
// left of them.
func TestManyCalls(t *testing.T) {
	fast := func(c *Config, _ *desk) {
		c.T1, c.T2, c.T4 = 20*time.Millisecond, 80*time.Millisecond, 100*time.Millisecond
	}
	a, b := newSide(t, fast), newSide(t, fast)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case c := <-b.calls:
				wg.Go(func() {
					go func() {
						for range c.Events() {
						}
					}()
					_ = c.Ring()
					_ = c.Answer(ctx, []byte("v=0 answer\r\n"))
				})
			case <-ctx.Done():
				return
			}
		}
	})
	time.Sleep(50 * time.Millisecond)
	before := runtime.NumGoroutine()
	total := 2000
	if testing.Short() {
		total = 200
	}
	slots := make(chan struct{}, 20)
	var mu sync.Mutex
	ends := map[End]int{}
	var calls sync.WaitGroup
	for i := range total {
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			c, err := a.Dial(ctx, Outgoing{To: "1", From: "2", SDP: []byte("v=0\r\n"), Target: Target{URI: b.uri}})
			if err != nil {
				t.Error(err)
				return
			}
			for ev := range c.Events() {
				switch ev := ev.(type) {
				case Progress:
					if i%10 == 0 {
						c.Cancel(16, "")
					}
				case Answered:
					c.Bye(16, "")
				case Ended:
					mu.Lock()
					ends[ev.Cause]++
					mu.Unlock()
				}
			}
		})
	}
	calls.Wait()
	if ends[EndBye]+ends[EndCancelled] != total {
		t.Errorf("the calls ended so: %v", ends)
	}
	limit := time.Now().Add(3 * patience)
	for {
		sa, sb := a.Stats(), b.Stats()
		n := runtime.NumGoroutine()
		if sa.Calls+sb.Calls+sa.Transactions+sb.Transactions == 0 && n <= before+5 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("left: %+v, %+v, %d goroutines of %d", sa, sb, n, before)
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	wg.Wait()
}

func BenchmarkCall(b *testing.B) {
	t := b
	cfg := Config{Listen: []string{"udp://127.0.0.1:0"}, T1: 20 * time.Millisecond, T4: 50 * time.Millisecond}
	d := newDesk()
	in, err := New(cfg, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := New(cfg, newDesk(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = in.Run(ctx) })
	wg.Go(func() { _ = out.Run(ctx) })
	wg.Go(func() {
		for {
			select {
			case c := <-d.calls:
				go func() { _ = c.Answer(ctx, []byte("v=0\r\n")) }()
				wg.Go(func() {
					for range c.Events() {
					}
				})
			case <-ctx.Done():
				return
			}
		}
	})
	uri := "sip:" + in.Addrs()[0][len("udp://"):]
	for b.Loop() {
		c, err := out.Dial(ctx, Outgoing{To: "1", From: "2", SDP: []byte("v=0\r\n"), Target: Target{URI: uri}})
		if err != nil {
			t.Fatal(err)
		}
		for ev := range c.Events() {
			if _, ok := ev.(Answered); ok {
				c.Bye(16, "")
			}
		}
	}
	stop()
	wg.Wait()
}
