package signaling

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/livekit/protocol/livekit"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const (
	maxFrame       = 2 << 20   // bytes of one message, deflated and inflated
	maxQueued      = 1024      // messages waiting for a slow client
	maxQueuedBytes = 8 << 20   // and their bytes
	frameRate      = 250       // messages a second that a client may send for long
	frameBurst     = 2500      // and at once, after having been quiet
	receiveSlack   = 256 << 10 // what buffers and control frames may add to a message
)

const (
	closeNormal    = websocket.StatusNormalClosure
	closeGoingAway = websocket.StatusGoingAway
)

// A socket is one WebSocket of a LiveKit client. Its reader runs in the
// handler's goroutine (serve), which also waits for the writer. send and finish
// may be called from anywhere and never block.
type socket struct {
	conn  *websocket.Conn
	times times
	meter *meter

	queue   chan *livekit.SignalResponse
	queued  atomic.Int64 // bytes in queue
	text    atomic.Bool  // the client last spoke JSON
	heard   atomic.Int64 // when the client was last heard, Unix nanoseconds
	waiting atomic.Bool  // a request waits for the participant's loop

	finishing chan struct{}   // closed by finish
	writing   context.Context // ends a moment after finish, so that no write goes on for ever
	stop      context.CancelFunc

	mu     sync.Mutex // guards the following fields
	ended  bool       // finish was called
	code   websocket.StatusCode
	reason string
}

// accept upgrades the request. It may come from any origin: what counts is the
// token.
func (s *Server) accept(w http.ResponseWriter, r *http.Request) (*socket, error) {
	sock := &socket{
		times:     s.times,
		meter:     &meter{limit: maxFrame + receiveSlack},
		queue:     make(chan *livekit.SignalResponse, maxQueued),
		finishing: make(chan struct{}),
	}
	sock.writing, sock.stop = context.WithCancel(context.Background())
	sock.touch()
	conn, err := websocket.Accept(meteredWriter{w, sock.meter}, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true,
		CompressionMode:    websocket.CompressionNoContextTakeover,
		OnPongReceived:     func(context.Context, []byte) { sock.touch() },
	})
	if err != nil {
		sock.stop()
		return nil, err
	}
	conn.SetReadLimit(maxFrame)
	sock.conn = conn
	return sock, nil
}

func (k *socket) touch() { k.heard.Store(time.Now().UnixNano()) }

// lastHeard is when anything last came from the client, a pong included.
func (k *socket) lastHeard() time.Time { return time.Unix(0, k.heard.Load()) }

// send queues a message. A client that lets too many wait loses its socket;
// it can resume when it is back.
func (k *socket) send(m *livekit.SignalResponse) {
	size := int64(proto.Size(m))
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return
	}
	if k.queued.Add(size) <= maxQueuedBytes {
		select {
		case k.queue <- m:
			return
		default:
		}
	}
	k.endLocked(websocket.StatusPolicyViolation, "too slow")
}

// finish closes the socket after the queued messages have been written, or
// could not be written in time.
func (k *socket) finish(code websocket.StatusCode, reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended {
		k.endLocked(code, reason)
	}
}

func (k *socket) endLocked(code websocket.StatusCode, reason string) {
	k.ended, k.code, k.reason = true, code, reason
	time.AfterFunc(k.times.flush, k.stop)
	close(k.finishing)
}

// abort drops the connection of a socket that nobody serves.
func (k *socket) abort() {
	k.finish(closeGoingAway, "")
	k.stop()
	_ = k.conn.CloseNow()
}

// serve reads until the connection ends and returns when the writer has, too.
// A nil participant hears nothing.
func (k *socket) serve(p *participant) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(k.write)
	wg.Go(func() { k.ping(ctx) })
	k.read(ctx, p)
	k.finish(closeNormal, "")
	cancel()
	wg.Wait()
	k.stop()
	_ = k.conn.CloseNow()
	if p != nil {
		p.tell(socketLost{k})
	}
}

func (k *socket) read(ctx context.Context, p *participant) {
	limiter := rate.NewLimiter(frameRate, frameBurst)
	for {
		kind, frame, err := k.conn.Read(ctx)
		if errors.Is(err, errTooMuch) {
			k.finish(websocket.StatusMessageTooBig, "message too big")
		}
		if err != nil {
			return // the library has sent a close code where one is due
		}
		k.meter.reset()
		k.touch()
		if !limiter.Allow() {
			k.refuse(websocket.StatusPolicyViolation, "too many messages")
			return
		}
		k.text.Store(kind == websocket.MessageText)
		request, err := decodeSignal(frame, kind == websocket.MessageText)
		if err != nil {
			k.refuse(websocket.StatusInvalidFramePayloadData, "not a SignalRequest")
			return
		}
		if leave := request.GetLeave(); leave != nil && p != nil {
			// It counts even if this socket has just been told to close: a
			// client that leaves also takes down its media, which may be
			// noticed first.
			p.tell(clientLeave{k, leave.GetReason()})
			continue
		}
		if p == nil || !p.deliver(signalRequest{k, request}) {
			return
		}
	}
}

// refuse closes a socket whose client broke the rules and lets the writer
// finish; the reader must go on reading to see the close being answered.
func (k *socket) refuse(code websocket.StatusCode, reason string) {
	k.finish(code, reason)
	ctx, cancel := context.WithTimeout(context.Background(), k.times.closeWait)
	defer cancel()
	for {
		if _, _, err := k.conn.Read(ctx); err != nil {
			return
		}
		k.meter.reset()
	}
}

// decodeSignal parses one frame.
func decodeSignal(frame []byte, text bool) (*livekit.SignalRequest, error) {
	request := &livekit.SignalRequest{}
	if text {
		return request, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(frame, request)
	}
	return request, proto.Unmarshal(frame, request)
}

// write sends queued messages until finish was called; then what is left, if
// that is possible in a moment, and the close.
func (k *socket) write() {
	for finishing := false; !finishing; {
		select {
		case m := <-k.queue:
			if k.writeOne(m) != nil {
				_ = k.conn.CloseNow()
				return
			}
		case <-k.finishing:
			finishing = true
		}
	}
	for range len(k.queue) {
		if k.writeOne(<-k.queue) != nil {
			_ = k.conn.CloseNow()
			return
		}
	}
	// Close waits for the client's answer; not for ever.
	impatient := time.AfterFunc(k.times.closeWait, func() { _ = k.conn.CloseNow() })
	defer impatient.Stop()
	k.mu.Lock()
	code, reason := k.code, k.reason
	k.mu.Unlock()
	_ = k.conn.Close(code, reason)
}

func (k *socket) writeOne(m *livekit.SignalResponse) error {
	defer k.queued.Add(-int64(proto.Size(m)))
	kind := websocket.MessageBinary
	marshal := proto.Marshal
	if k.text.Load() {
		kind, marshal = websocket.MessageText, protojson.Marshal
	}
	frame, err := marshal(m)
	if err != nil {
		return err
	}
	return k.conn.Write(k.writing, kind, frame)
}

// ping keeps proxies from closing a quiet socket and proves that the client's
// machine is still there even when its page is being throttled.
func (k *socket) ping(ctx context.Context) {
	tick := time.NewTicker(k.times.wsPing)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			wait, cancel := context.WithTimeout(ctx, k.times.wsPing)
			_ = k.conn.Ping(wait)
			cancel()
		case <-k.finishing:
			return
		case <-ctx.Done():
			return
		}
	}
}

// A meter counts the bytes received since the last complete message, so that
// a message can also not exceed the limit before it is inflated, and control
// frames alone can not go on for ever.
type meter struct {
	limit int64
	n     atomic.Int64
}

var errTooMuch = errors.New("message too big")

func (m *meter) reset() { m.n.Store(0) }

func (m *meter) add(n int) error {
	if m.n.Add(int64(n)) > m.limit {
		return errTooMuch
	}
	return nil
}

// meteredWriter is a ResponseWriter whose hijacked connection is metered.
type meteredWriter struct {
	http.ResponseWriter
	meter *meter
}

// Hijack hands over the connection, metered.
func (w meteredWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffers, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return meteredConn{conn, w.meter}, buffers, nil
}

type meteredConn struct {
	net.Conn
	meter *meter
}

func (c meteredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil {
		err = c.meter.add(n)
	}
	return n, err
}
