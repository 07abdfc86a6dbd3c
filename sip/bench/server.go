package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/pion/rtp"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/audio/opus"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/sip/bridge"
	"github.com/trunkhall/trunkhall/sip/media"
)

var home = netip.MustParseAddr("127.0.0.1")

// report answers each line of in with what this process has used, until in ends. A line
// "collect" frees memory first.
func report(in *bufio.Scanner, out io.Writer, calls func() (int, string)) error {
	for in.Scan() {
		if in.Text() == "collect" {
			runtime.GC()
			runtime.GC()
		}
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			return err
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return err
		}
		u := usage{
			CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano()), Goroutines: runtime.NumGoroutine(),
			Files: len(files), Heap: mem.HeapAlloc,
		}
		u.Calls, u.Problem = calls()
		if err := json.NewEncoder(out).Encode(u); err != nil {
			return err
		}
	}
	return in.Err()
}

// newSFU opens an SFU that nobody connects to: its members are local.
func newSFU() (*sfu.Server, error) {
	cfg := sfu.DefaultConfig()
	cfg.UDPPort, cfg.TCPPort, cfg.Loopback = 0, 0, true
	cfg.BindAddresses = []string{home.String()}
	return sfu.New(cfg, sfu.Deps{Log: slog.New(slog.DiscardHandler)})
}

// ServeMedia is the server of one scenario, until in is at its end. It is told the
// telephones' ports, seats them, and tells its own.
func ServeMedia(name string, in io.Reader, out io.Writer) error {
	sc, err := scenarioNamed(name)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.New("no telephones")
	}
	var phones []uint16
	if err := json.Unmarshal(lines.Bytes(), &phones); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	pool, err := media.NewPool(media.Config{BindIP: home, PortMin: 20000, PortMax: 29999, Drain: time.Second}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	running.Go(func() { pool.Run(ctx) })
	var sessions []*media.Session
	var ports []uint16
	for _, port := range phones {
		s, err := pool.Open(media.Options{Codecs: []audio.Codec{audio.PCMU}, Sources: []netip.Prefix{netip.PrefixFrom(home, 32)}})
		if err != nil {
			return err
		}
		offer := fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\nm=audio %[2]d RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000\r\n", home, port)
		if _, err := s.Answer([]byte(offer)); err != nil {
			return err
		}
		s.Start()
		sessions, ports = append(sessions, s), append(ports, s.Local().Port())
	}
	check := func() (int, string) { return len(sessions), "" }
	if err := seat(ctx, &running, sc, sessions); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(ports); err != nil {
		return err
	}
	return report(lines, out, check)
}

// seat puts telephones and browsers into rooms.
func seat(ctx context.Context, running *sync.WaitGroup, sc scenario, sessions []*media.Session) error {
	srv, err := newSFU()
	if err != nil {
		return err
	}
	running.Go(func() { srv.Run(ctx) })
	bridges := bridge.New(srv, nil)
	running.Go(func() { bridges.Run(ctx) })
	grant := func(room call.RoomName, id string, kind call.ParticipantKind) call.Grant {
		return call.Grant{Room: room, Identity: call.Identity(id), Name: id, Kind: kind, CanPublish: true, CanSubscribe: true}
	}
	var browsers []*browser
	for i, s := range sessions {
		room := call.RoomName(fmt.Sprintf("room-%d", i/sc.perRoom))
		g := grant(room, fmt.Sprintf("phone-%d", i), call.KindSIP)
		if _, err := bridges.Join(ctx, call.Seat{Room: room, Grant: g}, bridge.PhoneOptions{Sound: s}); err != nil {
			return err
		}
		if i%sc.perRoom > 0 {
			continue
		}
		for n := range sc.browsers {
			b := &browser{}
			g := grant(room, fmt.Sprintf("browser-%d-%d", i, n), call.KindStandard)
			m, _, err := srv.OpenRoom(room, sfu.RoomOptions{}).JoinLocal(ctx, sfu.LocalParams{Grant: g, Session: b, Tap: b})
			if err != nil {
				return err
			}
			if sc.speaking {
				if b.track, err = m.PublishLocal(sfu.AddTrack{Kind: sfu.KindAudio, Source: call.SourceMicrophone}); err != nil {
					return err
				}
			}
			browsers = append(browsers, b)
		}
	}
	if !sc.speaking {
		return nil
	}
	packets, err := opusSpeech()
	if err != nil {
		return err
	}
	running.Go(func() {
		tick := time.NewTicker(audio.FrameDuration)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			for k, b := range browsers {
				b.track.Write(packets[(i+7*k)%len(packets)], uint32(i*960), i == 0, 20, true)
			}
		}
	})
	return nil
}

// A browser is a member who speaks what was encoded before and hears without decoding.
type browser struct{ track *sfu.LocalTrack }

func (*browser) Event(sfu.Event)                   {}
func (b *browser) Open(sfu.TapTrack) sfu.Sink      { return b }
func (*browser) WriteRTP(*rtp.Packet, uint8, bool) {}
func (*browser) Close()                            {}

// opusSpeech returns two seconds of speech as a browser sends it.
func opusSpeech() ([][]byte, error) {
	const rate = 48000
	enc, err := opus.NewEncoder(opus.Config{Rate: rate, Bitrate: 24000, Complexity: 5})
	if err != nil {
		return nil, err
	}
	var packets [][]byte
	for pcm := speech(rate, 2*rate); len(pcm) > 0; pcm = pcm[rate/50:] {
		b := make([]byte, opus.MaxPayload)
		n, err := enc.Encode(pcm[:rate/50], b)
		if err != nil {
			return nil, err
		}
		packets = append(packets, b[:n])
	}
	return packets, nil
}
