package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// order is what a caller is to do.
type order struct {
	Port  uint16 `json:"port"` // of the gateway
	Calls int    `json:"calls"`
	Rate  int    `json:"rate"` // calls a second
}

// outcome is how its calls went.
type outcome struct {
	Good, Bad int
	Why       string // one of the bad
}

// caller places calls that end as soon as they are answered, for machines without SIPp.
// It knows as much SIP over UDP as that takes.
type caller struct {
	conn *net.UDPConn
	to   netip.AddrPort
	mine string

	mu    sync.Mutex // guards the following
	calls map[string]*placed
	outcome
}

// placed is a call that is not over.
type placed struct {
	id      string
	request string // sent last, until it is answered
	sent    time.Time
	tries   int
	to      string // the To header with its tag
	contact string // where BYE goes
}

const (
	callPatience = 500 * time.Millisecond // until a request is repeated (T1)
	callTries    = 6
)

// PlaceCalls does what one line of in orders and tells how it went.
func PlaceCalls(in io.Reader, out io.Writer) error {
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	if o.Rate < 1 || o.Calls < 1 {
		return errors.New("no calls")
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(home, 0)))
	if err != nil {
		return err
	}
	c := &caller{conn: conn, to: netip.AddrPortFrom(home, o.Port), mine: conn.LocalAddr().String(), calls: map[string]*placed{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.listen()
	}()
	begun, tick := time.Now(), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for n := 0; ; {
		now := <-tick.C
		for ; n < o.Calls && time.Duration(n)*time.Second/time.Duration(o.Rate) <= now.Sub(begun); n++ {
			c.place(n, now)
		}
		if left := c.repeat(now); n == o.Calls && left == 0 {
			break
		}
	}
	conn.Close()
	<-done
	return json.NewEncoder(out).Encode(c.outcome)
}

// place sends the INVITE of call n.
func (c *caller) place(n int, now time.Time) {
	p := &placed{id: fmt.Sprintf("%d-%d@bench", n, now.UnixNano()), contact: "sip:+15551234567@" + c.to.String()}
	p.to = "<" + p.contact + ">"
	sdp := fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\n", home)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[p.id] = p
	c.send(p, "INVITE", 1, sdp, now)
}

// send sends a request and keeps it for repetition. The caller holds c.mu.
func (c *caller) send(p *placed, method string, cseq int, body string, now time.Time) {
	text := fmt.Sprintf("%s %s SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK-%s-%d-%s;rport\r\nMax-Forwards: 70\r\nFrom: <sip:bench@%s>;tag=%s\r\n"+
		"To: %s\r\nCall-ID: %s\r\nCSeq: %d %s\r\nContact: <sip:bench@%s>\r\n",
		method, p.contact, c.mine, p.id, cseq, method, c.mine, p.id[:strings.IndexByte(p.id, '@')], p.to, p.id, cseq, method, c.mine)
	if body != "" {
		text += "Content-Type: application/sdp\r\n"
	}
	text += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
	if method != "ACK" {
		p.request, p.sent, p.tries = text, now, 1
	}
	c.write(text)
}

func (c *caller) write(text string) { c.conn.WriteToUDPAddrPort([]byte(text), c.to) }

// repeat sends again what got no answer, and returns how many calls are open.
func (c *caller) repeat(now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.calls {
		if p.request == "" || now.Sub(p.sent) < callPatience<<(p.tries-1) {
			continue
		}
		if p.tries++; p.tries > callTries {
			c.end(id, "no answer to "+p.request[:strings.IndexByte(p.request, ' ')])
			continue
		}
		c.write(p.request)
	}
	return len(c.calls)
}

func (c *caller) end(id, why string) {
	delete(c.calls, id)
	if why == "" {
		c.Good++
		return
	}
	c.Bad++
	c.Why = why
}

func (c *caller) listen() {
	buf := make([]byte, 65536)
	for {
		n, _, err := c.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		c.hear(string(buf[:n]), time.Now())
	}
}

// header returns the value of a header that is there once.
func header(message, name string) string {
	_, rest, ok := strings.Cut(message, "\r\n"+name+": ")
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, "\r\n")
	return value
}

// hear takes a message of the gateway.
func (c *caller) hear(message string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.calls[header(message, "Call-ID")]
	status, ok := strings.CutPrefix(message, "SIP/2.0 ")
	if p == nil || !ok || len(status) < 3 {
		return
	}
	method := strings.TrimLeft(header(message, "CSeq"), "0123456789 ")
	switch {
	case status[0] == '1':
		if method == "INVITE" {
			p.request = "" // RFC 3261 §17.1.1.2: not repeated any more
		}
	case method == "BYE":
		c.end(p.id, "")
	case status[0] != '2':
		p.to = header(message, "To")
		c.send(p, "ACK", 1, "", now)
		c.end(p.id, status[:min(len(status), strings.IndexByte(status+"\r", '\r'))])
	default:
		p.to = header(message, "To")
		if _, uri, ok := strings.Cut(header(message, "Contact"), "<"); ok {
			p.contact, _, _ = strings.Cut(uri, ">")
		}
		c.send(p, "ACK", 1, "", now)
		if !strings.HasPrefix(p.request, "BYE") {
			c.send(p, "BYE", 2, "", now)
		}
	}
}
