package dialog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"
)

func headerValue(hs []Header, name string) string {
	for _, h := range hs {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

func headerValues(hs []Header, name string) (values []string) {
	for _, h := range hs {
		if strings.EqualFold(h.Name, name) {
			values = append(values, h.Value)
		}
	}
	return values
}

// Request sends a request outside of any dialog and waits for its final answer.
// The target's addresses are tried in order until one answers with something
// other than 503; a challenge is answered once, and once more if the nonce was
// stale.
func (e *Endpoint) Request(ctx context.Context, m Message) (Response, error) {
	target, ok := parseURI(m.Target.URI)
	if !ok {
		return Response{}, fmt.Errorf("target %q is no SIP URI", m.Target.URI)
	}
	if m.URI == "" {
		m.URI = m.Target.URI
	}
	if m.To == "" {
		m.To = m.URI
	}
	if m.From == "" {
		m.From = m.To
	}
	m.To, m.From = wholeURI(m.To, target, false), wholeURI(m.From, target, false)
	if checkURI(m.URI) != nil || !validURI(m.To) || !validURI(m.From) || !isToken(m.Method) {
		return Response{}, errors.New("the request's method or addresses are malformed")
	}
	for _, h := range append([]Header{{"Contact", m.Contact + m.ContactParams}, {"Call-ID", m.CallID}, {"Content-Type", m.ContentType}, {"Route", m.Target.Proxy}}, m.Headers...) {
		if err := cleanHeader(h); err != nil {
			return Response{}, err
		}
	}
	if m.CallID == "" {
		m.CallID = randomHex(16)
	}
	if m.CSeq == 0 {
		m.CSeq = 1
	}
	next := m.Target.URI
	if m.Target.Proxy != "" {
		next = m.Target.Proxy
	}
	hops, err := e.Resolve(ctx, next)
	if err != nil {
		return Response{}, err
	}
	tag := sip.GenerateTagN(16)
	var last error = errNoSocket
	for i, h := range hops {
		limit := ctx
		cancel := func() {}
		if i < len(hops)-1 {
			limit, cancel = context.WithTimeout(ctx, 10*e.timers.t1)
		}
		r, err := e.requestHop(limit, h, m, tag)
		cancel()
		if err == nil && (r.Code != 503 || i == len(hops)-1) {
			return r, nil
		}
		if ctx.Err() != nil {
			return Response{}, ctx.Err()
		}
		if err == nil {
			err = &Refused{r.Code, r.Reason}
		}
		e.punish(h)
		last = fmt.Errorf("%s: %w", h, err)
	}
	return Response{}, last
}

// requestHop is Request at one address.
func (e *Endpoint) requestHop(ctx context.Context, h Hop, m Message, tag string) (Response, error) {
	f, err := e.flowTo(ctx, h)
	if err != nil {
		return Response{}, err
	}
	creds := credentials{m.Target.Username, m.Target.Password, m.Target.Realm}
	var auth *Header
	for try := 0; ; try++ {
		req := &message{method: m.Method, uri: m.URI, callID: m.CallID, seq: m.CSeq + uint32(try), body: m.Body}
		if p := m.Target.Proxy; p != "" {
			if !isLoose(p) {
				p += ";lr"
			}
			req.add("Route", "<"+p+">")
		}
		req.add("Max-Forwards", "70")
		req.add("From", "<"+m.From+">;tag="+tag)
		req.add("To", "<"+m.To+">")
		req.add("Call-ID", m.CallID)
		req.add("CSeq", strconv.Itoa(int(req.seq))+" "+m.Method)
		if m.Contact != "" || m.ContactParams != "" {
			c := &Call{e: e, external: m.Target.external()}
			c.makeContact(f, m.Contact, strings.HasPrefix(m.URI, "sips:"))
			if m.ContactParams != "" {
				c.contact += ";" + m.ContactParams
			}
			req.add("Contact", c.contact)
		}
		if e.cfg.UserAgent != "" {
			req.add("User-Agent", e.cfg.UserAgent)
		}
		switch m.Method {
		case "OPTIONS":
			req.add("Accept", "application/sdp")
		case "REGISTER":
			req.add("Allow", allowed)
		}
		req.headers = append(req.headers, m.Headers...)
		if auth != nil {
			req.headers = append(req.headers, *auth)
		}
		if len(m.Body) > 0 {
			req.add("Content-Type", m.ContentType)
		}
		type outcome struct {
			res *message
			err error
		}
		done := make(chan outcome, 1)
		began := time.Now()
		e.launch(req, f, m.Target.external(), func(res *message, err error) {
			if err == nil && res.code < 200 {
				return
			}
			select {
			case done <- outcome{res, err}:
			default:
			}
		})
		var o outcome
		select {
		case o = <-done:
		case <-ctx.Done():
			return Response{}, ctx.Err()
		case <-e.done:
			return Response{}, errClosed
		}
		if o.err != nil {
			return Response{}, o.err
		}
		if (o.res.code == 401 || o.res.code == 407) && try < 2 && creds.username != "" {
			hd, _, stale, err := e.authorize(o.res, m.Method, m.URI, creds)
			if err != nil {
				e.log.Warn("sip: a challenge cannot be answered", "peer", h.String(), "err", err)
			} else if try == 0 || stale {
				auth = &hd
				continue
			}
		}
		return e.responseOf(o.res, time.Since(began)), nil
	}
}

func (e *Endpoint) responseOf(res *message, elapsed time.Duration) Response {
	r := Response{
		Code: res.code, Reason: plain(res.reason), Source: res.flow.remote,
		Elapsed: elapsed, Body: res.body, headers: res.headers,
	}
	ps := res.via[0].params
	if port, ok := ps.get("rport"); ok && port != "" {
		host, has := ps.get("received")
		if !has {
			host = res.via[0].host
		}
		if ap, err := netip.ParseAddrPort(net.JoinHostPort(host, port)); err == nil {
			r.Seen = unmap(ap)
		}
	}
	return r
}
