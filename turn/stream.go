package turn

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxConnections   = 4096 // clients over TCP at a time
	maxConnectionsIP = 256  // from one address: many people may share one
)

// streamTimes bound what a client over TCP may take its time with.
type streamTimes struct {
	idle  time.Duration // without a relay, a connection may be silent so long
	relay time.Duration // and talk so long
	frame time.Duration // a message that has begun must end within this
	write time.Duration // a client must take what is sent to it within this
}

func defaultStreamTimes() streamTimes {
	return streamTimes{idle: 30 * time.Second, relay: time.Minute, frame: 10 * time.Second, write: 10 * time.Second}
}

// A clientListener accepts clients over TCP (RFC 8656 section 2.1), so many and
// no more.
type clientListener struct {
	net.Listener
	s *Server

	mu     sync.Mutex // guards the following fields
	closed bool
	conns  map[*clientConn]bool
	perIP  map[netip.Addr]int
}

func newClientListener(s *Server, l net.Listener) *clientListener {
	return &clientListener{Listener: l, s: s, conns: map[*clientConn]bool{}, perIP: map[netip.Addr]int{}}
}

// Accept returns the next client. Those over the limits are closed at once.
func (l *clientListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil, err
			}
			l.s.log.Warn("accept TURN client", "err", err)
			time.Sleep(50 * time.Millisecond) // out of file descriptors: wait for some
			continue
		}
		conn := &clientConn{Conn: c, l: l, key: clientKey(c.RemoteAddr(), c.LocalAddr()), useless: time.Now()}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			conn.ip = a.AddrPort().Addr().Unmap()
		}
		if !l.admit(conn) {
			l.s.stats.connectionsRefused.Add(1)
			_ = c.Close()
			continue
		}
		l.s.stats.connections.Add(1)
		return conn, nil
	}
}

func (l *clientListener) admit(c *clientConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.conns) >= maxConnections || l.perIP[c.ip] >= maxConnectionsIP {
		return false
	}
	l.conns[c] = true
	l.perIP[c.ip]++
	l.s.open.Add(1) // not closed: Run waits later
	return true
}

func (l *clientListener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Close ends the listener and every client's connection.
func (l *clientListener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	l.closed = true
	all := make([]*clientConn, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	l.mu.Unlock()
	for _, c := range all {
		_ = c.Conn.Close() // pion/turn notices and calls the rest of Close
	}
	return err
}

// A clientConn is one client's TCP connection. Read returns whole messages
// only, one at a time.
type clientConn struct {
	net.Conn
	l          *clientListener
	ip         netip.Addr
	key        string // see clientKey
	challenged atomic.Bool
	once       sync.Once

	// Of the one reader:
	buf     [maxFrame]byte // a message as far as it has come
	useless time.Time      // since when it is known to have no relay
	looked  time.Time      // when that was last looked up
}

var errMalformed = errors.New("not TURN")

// Read returns the next message that pion/turn shall see. A connection that
// stalls within a message, or is silent without having a relay, is over.
func (c *clientConn) Read(b []byte) (int, error) {
	for {
		n, err := c.readFrame()
		if err != nil {
			return 0, err
		}
		frame := c.buf[:n]
		pass, answer := c.l.s.screen(frame, c.key, c.challenged.Load())
		if pass {
			if len(b) < n {
				return 0, errMalformed // pion/turn always has room
			}
			return copy(b, frame), nil
		}
		if answer != nil {
			if _, err := c.Write(answer); err != nil {
				return 0, err
			}
		}
	}
}

// readFrame reads one message into c.buf and returns its size. It reads no
// further than that message.
func (c *clientConn) readFrame() (int, error) {
	times := c.l.s.times
	have, size := 0, 4 // the header with the length, first
	for have < size {
		if have == 0 {
			if !c.useful(times) {
				c.l.s.stats.connectionsTimedOut.Add(1)
				return 0, os.ErrDeadlineExceeded
			}
			_ = c.SetReadDeadline(time.Now().Add(times.idle))
		}
		n, err := c.Conn.Read(c.buf[have:size])
		if n > 0 && have == 0 {
			_ = c.SetReadDeadline(time.Now().Add(times.frame))
		}
		have += n
		if err != nil && have < size {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if have == 0 && c.l.s.hasRelay(c.key) {
					continue // silent, but alive as long as its relay is
				}
				c.l.s.stats.connectionsTimedOut.Add(1)
			}
			return 0, err
		}
		if have == 4 && size == 4 {
			if size, err = frameSize(c.buf[:4]); err != nil {
				c.l.s.stats.malformed.Add(1)
				return 0, err
			}
		}
	}
	return have, nil
}

// useful reports whether the connection has a relay, or had no time yet to get
// one. It looks every few seconds only.
func (c *clientConn) useful(times streamTimes) bool {
	now := time.Now()
	if now.Sub(c.looked) < times.relay/10 {
		return true
	}
	c.looked = now
	if c.l.s.hasRelay(c.key) {
		c.useless = now
	}
	return now.Sub(c.useless) <= times.relay
}

// frameSize returns the size of the message that begins with these four bytes,
// padding included (RFC 8656 section 12.5).
func frameSize(head []byte) (int, error) {
	size := int(binary.BigEndian.Uint16(head[2:]))
	switch head[0] >> 6 {
	case 0: // STUN
		if size%4 != 0 {
			return 0, errMalformed
		}
		size += 20
	case 1: // channel data
		size = 4 + (size+3)&^3
	default:
		return 0, errMalformed
	}
	if size > maxFrame {
		return 0, errMalformed
	}
	return size, nil
}

// Write sends a message to the client, which must not be slow to take it.
func (c *clientConn) Write(b []byte) (int, error) {
	if isChallenge(b) {
		c.challenged.Store(true)
	}
	_ = c.SetWriteDeadline(time.Now().Add(c.l.s.times.write))
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Conn.Close() // half a message may be out: nothing can follow it
	}
	return n, err
}

// Close ends the connection and gives back its place.
func (c *clientConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.l.mu.Lock()
		delete(c.l.conns, c)
		if c.l.perIP[c.ip]--; c.l.perIP[c.ip] == 0 {
			delete(c.l.perIP, c.ip)
		}
		c.l.mu.Unlock()
		c.l.s.open.Done()
	})
	return err
}
