package dialog

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

// A flow is a way to a peer and back: a UDP socket with the peer's address, or a
// connection.
type flow struct {
	network string // udp, tcp, tls, ws, wss
	local   netip.AddrPort
	remote  netip.AddrPort
	udp     *udpSocket
	conn    *conn
}

func (f *flow) reliable() bool { return f.udp == nil }

func (f *flow) alive() bool { return f != nil && (f.udp != nil || !f.conn.closed.Load()) }

func (f *flow) send(b []byte) error {
	if f.udp != nil {
		return f.udp.write(b, f.remote)
	}
	return f.conn.write(b)
}

// A udpSocket is one listening UDP socket. Everything over UDP goes out of one of
// them, so that answers and requests find the way back through a NAT.
type udpSocket struct {
	pc    net.PacketConn
	local netip.AddrPort
}

func (s *udpSocket) write(b []byte, to netip.AddrPort) error {
	var err error
	if u, ok := s.pc.(*net.UDPConn); ok {
		_, err = u.WriteToUDPAddrPort(b, to)
	} else {
		_, err = s.pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
	}
	return err
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.UDPAddr:
		return unmap(a.AddrPort())
	case *net.TCPAddr:
		return unmap(a.AddrPort())
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return unmap(ap)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// readUDP serves one socket until it is closed.
func (e *Endpoint) readUDP(s *udpSocket) {
	buf := make([]byte, 65536)
	for {
		n, from, err := s.pc.ReadFrom(buf)
		if err != nil {
			if e.stopping() || errors.Is(err, net.ErrClosed) {
				return
			}
			// An ICMP error of an earlier packet, or a datagram too large for a
			// platform that says so: neither is the end of the socket.
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			e.log.Debug("sip udp read", "err", err)
			select {
			case <-e.done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		src := addrPort(from)
		if !e.handler.Screen(src, "udp") {
			e.counters.screened.Add(1)
			continue
		}
		data := buf[:n]
		if len(bytes.Trim(data, "\r\n\x00 ")) == 0 {
			continue // RFC 5626 §3.5.1 and friends: keep-alive
		}
		if n > e.cfg.MaxMessage {
			e.malformed(src)
			continue
		}
		m, _, err := scan(data, false, e.cfg.MaxMessage)
		e.receive(m, err, &flow{network: "udp", local: s.local, remote: src, udp: s})
	}
}

// A conn is one TCP, TLS or WebSocket connection.
type conn struct {
	e      *Endpoint
	c      net.Conn
	flow   *flow
	ws     bool
	client bool // we opened it: WebSocket frames are masked
	closed atomic.Bool
	// trusted is set by the first request that was accepted. Until then the
	// connection is not waited for: strangers cannot hold the places of others.
	trusted atomic.Bool

	mu sync.Mutex // serialises writes
}

func (f *flow) trust() {
	if f.conn != nil {
		f.conn.trusted.Store(true)
	}
}

const writeTimeout = 5 * time.Second

func (c *conn) write(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	_ = c.c.SetWriteDeadline(time.Now().Add(writeTimeout))
	var err error
	if c.ws {
		f := ws.NewTextFrame(b)
		if c.client {
			f = ws.MaskFrame(f)
		}
		err = ws.WriteFrame(c.c, f)
	} else {
		_, err = c.c.Write(b)
	}
	if err != nil {
		c.close()
	}
	return err
}

func (c *conn) close() {
	if c.closed.CompareAndSwap(false, true) {
		_ = c.c.Close()
	}
}

// serveStream accepts connections until the listener closes. Each costs nothing
// but its count before it is screened and counted.
func (e *Endpoint) serveStream(l *listener) {
	for {
		c, err := l.l.Accept()
		if err != nil {
			if e.stopping() || errors.Is(err, net.ErrClosed) {
				return
			}
			e.log.Warn("sip accept", "network", l.network, "err", err)
			select {
			case <-e.done:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors
			}
			continue
		}
		src := addrPort(c.RemoteAddr())
		if !e.handler.Screen(src, l.network) {
			e.counters.screened.Add(1)
			_ = c.Close()
			continue
		}
		if !e.admitConn(src.Addr()) {
			e.counters.connsRefused.Add(1)
			_ = c.Close()
			continue
		}
		e.wg.Go(func() {
			defer e.releaseConn(src.Addr())
			e.serveConn(c, l)
		})
	}
}

// serveConn does the handshakes of a connection that came in and reads it.
func (e *Endpoint) serveConn(raw net.Conn, l *listener) {
	stop := context.AfterFunc(e.ctx, func() { _ = raw.Close() })
	defer stop()
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(e.cfg.ReadTimeout))
	c := &conn{e: e, c: raw}
	if l.network == "tls" || l.network == "wss" {
		t := tls.Server(raw, e.cfg.TLS)
		if err := t.HandshakeContext(e.ctx); err != nil {
			return
		}
		c.c = t
	}
	if l.network == "ws" || l.network == "wss" {
		u := ws.Upgrader{ReadBufferSize: 4096, Protocol: func(p []byte) bool { return string(p) == "sip" }}
		hs, err := u.Upgrade(c.c)
		if err != nil || hs.Protocol != "sip" { // RFC 7118 §4.1
			e.handler.Bad(addrPort(raw.RemoteAddr()), "websocket")
			return
		}
		c.ws = true
	}
	_ = raw.SetDeadline(time.Time{})
	c.flow = &flow{network: l.network, local: addrPort(raw.LocalAddr()), remote: addrPort(raw.RemoteAddr()), conn: c}
	e.addConn(c)
	defer e.dropConn(c)
	c.read()
}

// openConn opens a connection to a peer, or returns the one there is.
func (e *Endpoint) openConn(ctx context.Context, h Hop) (*flow, error) {
	if c := e.findConn(h.Network, h.Addr); c != nil {
		return c.flow, nil
	}
	if e.stopping() {
		return nil, errClosed
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ReadTimeout)
	defer cancel()
	raw, err := e.cfg.DialStream(ctx, h.Addr)
	if err != nil {
		return nil, err
	}
	c := &conn{e: e, c: raw, client: true}
	_ = raw.SetDeadline(time.Now().Add(e.cfg.ReadTimeout))
	if h.Network == "tls" || h.Network == "wss" {
		conf := e.cfg.ClientTLS.Clone()
		if conf.ServerName == "" {
			conf.ServerName = h.Name
		}
		t := tls.Client(raw, conf)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, fmt.Errorf("tls to %s: %w", h.Name, err)
		}
		c.c = t
	}
	if h.Network == "ws" || h.Network == "wss" {
		d := ws.Dialer{Protocols: []string{"sip"}}
		br, hs, err := d.Upgrade(c.c, &url.URL{Scheme: h.Network, Host: h.Addr.String(), Path: "/"})
		if err == nil && (hs.Protocol != "sip" || br != nil) {
			err = errors.New("the peer does not speak SIP over WebSocket")
		}
		if err != nil {
			_ = raw.Close()
			return nil, err
		}
		c.ws = true
	}
	_ = raw.SetDeadline(time.Time{})
	c.flow = &flow{network: h.Network, local: addrPort(raw.LocalAddr()), remote: h.Addr, conn: c}
	if !e.startConn(c, raw) {
		_ = raw.Close()
		return nil, errClosed
	}
	return c.flow, nil
}

// read takes messages off the connection until it ends. A message must be whole
// within ReadTimeout of its first byte; between messages the connection may be
// idle for IdleTimeout, and for ever while a call uses it.
func (c *conn) read() {
	defer c.close()
	buf := make([]byte, 0, 4096)
	need := 0           // bytes in buf before it is worth another look
	var begun time.Time // the first byte of the message in buf
	for {
		until := time.Now().Add(c.e.cfg.IdleTimeout)
		switch {
		case len(buf) == 0:
			begun = time.Time{}
			if !c.client && !c.trusted.Load() {
				until = time.Now().Add(c.e.cfg.ReadTimeout)
			}
		default:
			if begun.IsZero() {
				begun = time.Now()
			}
			until = begun.Add(c.e.cfg.ReadTimeout)
		}
		_ = c.c.SetReadDeadline(until)
		var err error
		if buf, err = c.more(buf); err != nil {
			if len(buf) == 0 && errors.Is(err, errIdle) && c.e.connBusy(c) {
				continue
			}
			return
		}
		for len(buf) >= need {
			if n := c.keepAlive(buf); n > 0 {
				buf = buf[n:]
			}
			if len(buf) == 0 {
				break
			}
			if len(buf) < c.e.cfg.MaxMessage && !headEnds(buf) {
				break // the header is not whole: nothing to read yet
			}
			m, n, err := scan(buf, true, c.e.cfg.MaxMessage)
			if errors.Is(err, errIncomplete) {
				if need = n; n <= len(buf) {
					buf, need = buf[n:], 0
				}
				break
			}
			need, begun = 0, time.Time{}
			if c.e.stopping() || !c.trusted.Load() && !c.client && !c.e.handler.Screen(c.flow.remote, c.flow.network) {
				return
			}
			c.e.receive(m, err, c.flow)
			if err != nil {
				return // RFC 3261 §18.3: nothing says where the next one begins
			}
			buf = buf[n:]
		}
		if len(buf) == 0 {
			buf = make([]byte, 0, 4096)
		}
	}
}

// headEnds says whether the empty line after the header is there.
func headEnds(buf []byte) bool {
	return bytes.Contains(buf, []byte("\n\r\n")) || bytes.Contains(buf, []byte("\n\n"))
}

var errIdle = errors.New("idle")

// more reads on. What was read is appended to buf even with an error.
func (c *conn) more(buf []byte) ([]byte, error) {
	if c.ws {
		return c.moreWS(buf)
	}
	if len(buf) == cap(buf) {
		buf = append(buf, 0)[:len(buf)]
	}
	n, err := c.c.Read(buf[len(buf):cap(buf)])
	buf = buf[:len(buf)+n]
	if n > 0 {
		err = nil
	}
	return buf, idle(err)
}

func idle(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return errIdle
	}
	return err
}

// moreWS reads one WebSocket message, which is one SIP message (RFC 7118 §5).
func (c *conn) moreWS(buf []byte) ([]byte, error) {
	var whole []byte
	for {
		h, err := ws.ReadHeader(c.c)
		if err != nil {
			return buf, idle(err)
		}
		if h.Length > int64(c.e.cfg.MaxMessage-len(whole)) || h.Masked == c.client {
			return buf, errors.New("websocket frame refused")
		}
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(c.c, payload); err != nil {
			return buf, err
		}
		if h.Masked {
			ws.Cipher(payload, h.Mask, 0)
		}
		switch h.OpCode {
		case ws.OpPing, ws.OpPong, ws.OpClose:
			if h.OpCode == ws.OpPong {
				continue
			}
			f := ws.NewPongFrame(payload)
			if h.OpCode == ws.OpClose {
				f = ws.NewCloseFrame(nil)
			}
			if c.client {
				f = ws.MaskFrame(f)
			}
			c.mu.Lock()
			_ = c.c.SetWriteDeadline(time.Now().Add(writeTimeout))
			err := ws.WriteFrame(c.c, f)
			c.mu.Unlock()
			if h.OpCode == ws.OpClose {
				err = io.EOF
			}
			if err != nil {
				return buf, err
			}
			continue
		case ws.OpText, ws.OpBinary, ws.OpContinuation:
		default:
			return buf, errors.New("websocket opcode refused")
		}
		whole = append(whole, payload...)
		if h.Fin {
			// The message is whole: a body without Content-Length is what is left.
			if at := bytes.Index(whole, []byte("\r\n\r\n")); at >= 0 && !hasLength(whole[:at]) {
				whole = append(append(append([]byte{}, whole[:at]...), fmt.Sprintf("\r\nContent-Length: %d", len(whole)-at-4)...), whole[at:]...)
			}
			return append(buf, whole...), nil
		}
	}
}

func hasLength(head []byte) bool {
	for _, line := range strings.Split(string(head), "\r\n") {
		name, _, _ := strings.Cut(line, ":")
		if longName(strings.TrimSpace(name)) == "Content-Length" {
			return true
		}
	}
	return false
}

// keepAlive takes empty lines off the front and answers a ping (RFC 5626 §4.4.1).
func (c *conn) keepAlive(buf []byte) int {
	n := 0
	for bytes.HasPrefix(buf[n:], []byte("\r\n\r\n")) {
		n += 4
		if !c.client {
			c.mu.Lock()
			_ = c.c.SetWriteDeadline(time.Now().Add(writeTimeout))
			if c.ws {
				_ = ws.WriteFrame(c.c, ws.NewTextFrame([]byte("\r\n")))
			} else {
				_, _ = c.c.Write([]byte("\r\n"))
			}
			c.mu.Unlock()
		}
	}
	for bytes.HasPrefix(buf[n:], []byte("\r\n")) {
		n += 2
	}
	return n
}
