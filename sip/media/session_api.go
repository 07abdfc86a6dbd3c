package media

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

var errTodo = errors.New("media: being written")

// Pool owns the RTP ports and looks after all sessions: reports, keep-alives,
// time-outs. Run must run for that.
type Pool struct{}

// NewPool makes a pool. It opens nothing yet.
func NewPool(cfg Config, log *slog.Logger) (*Pool, error) { return &Pool{}, cfg.Validate() }

// Run looks after the sessions until ctx ends, then closes them all.
func (p *Pool) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Close closes all sessions and lets no new one open.
func (p *Pool) Close() {}

// Stats counts ports.
func (p *Pool) Stats() PoolStats { return PoolStats{} }

// Open takes a pair of ports for a leg.
func (p *Pool) Open(o Options) (*Session, error) { return nil, errTodo }

// Session is the media of one leg.
type Session struct{}

// Offer makes our next offer. Its version grows when it differs from the last
// description we sent.
func (s *Session) Offer() ([]byte, error) { return nil, errTodo }

// Answer reads an offer, the first or a later one, and makes our answer. After an
// error nothing has changed: ErrNotAcceptable is a 488, call.ErrInvalid a 400.
func (s *Session) Answer(offer []byte) ([]byte, error) { return nil, errTodo }

// Accept reads the answer to our Offer: provisional (of a 18x; more may come, from
// other branches too, and the last one counts) or final, which implies Start.
func (s *Session) Accept(answer []byte, final bool) error { return errTodo }

// Start tells that the call has been answered: from now on the lack of media is a
// fault. Call it when a 200 has been sent; Accept of a final answer does it alone.
func (s *Session) Start() {}

// SetHold puts the other side on hold or takes it back, from the next Offer on.
func (s *Session) SetHold(hold bool) {}

// LocalHold says whether we put the other side on hold.
func (s *Session) LocalHold() bool { return false }

// RemoteHold says whether the other side does not want to hear us now.
func (s *Session) RemoteHold() bool { return false }

// Rate is the sample rate of Read and Write: 8000 or 16000. It can change with the
// codec at any time, so ask before each frame.
func (s *Session) Rate() int { return 8000 }

// Codec is the codec spoken now; empty before there is any.
func (s *Session) Codec() audio.Codec { return "" }

// SRTP says how the media is encrypted: "" (not at all), KeyingSDES or KeyingDTLS.
func (s *Session) SRTP() string { return "" }

// Local is our RTP address as the other side is told.
func (s *Session) Local() netip.AddrPort { return netip.AddrPort{} }

// Read fills pcm with the next 20 ms from the telephone.
func (s *Session) Read(now time.Time, pcm []int16) {}

// Write sends 20 ms to the telephone. While it cannot be sent (on hold, no address,
// no keys yet) it is dropped, which is no error.
func (s *Session) Write(pcm []int16) error { return errTodo }

// Press sends digits one after the other, each for 100 ms with a gap of at least
// 50 ms; w waits for half a second. They go out with the frames that are written.
func (s *Session) Press(digits string) {}

// Stats describes what came from the telephone.
func (s *Session) Stats() call.LegStats { return call.LegStats{} }

// Close gives the ports back. No event comes after it.
func (s *Session) Close() {}

// Copy joins two sessions that speak the same codec: packets of one are sent on by
// the other without being decoded, and Read and Write of both do nothing meanwhile.
// Digits are still reported. It lasts until stop or until one of them is closed or
// changes its codec: Copying tells.
func Copy(a, b *Session) (stop func(), err error) { return nil, errTodo }

// Copying says whether the session is joined with another by Copy.
func (s *Session) Copying() bool { return false }
