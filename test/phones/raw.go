package phones

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Raw is somebody who writes SIP by hand over UDP, for what neither phones nor
// scenarios do. It keeps everything that comes back.
type Raw struct {
	t    testing.TB
	conn *net.UDPConn
	to   netip.AddrPort

	mu  sync.Mutex
	got []string
}

// StartRaw opens a socket at ip, to talk to an address.
func StartRaw(t testing.TB, ip string, to netip.AddrPort) *Raw {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(FreePort(t, ip)))))
	if err != nil {
		t.Fatal(err)
	}
	r := &Raw{t: t, conn: conn, to: to}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, _, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.got = append(r.got, strings.ReplaceAll(string(b[:n]), "\r\n", "\n"))
			r.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return r
}

// Addr is its own address.
func (r *Raw) Addr() netip.AddrPort { return r.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Send sends a message; line ends become those of SIP.
func (r *Raw) Send(message string) {
	r.t.Helper()
	if _, err := r.conn.WriteToUDPAddrPort([]byte(strings.ReplaceAll(message, "\n", "\r\n")), r.to); err != nil {
		r.t.Errorf("sending: %v", err)
	}
}

// Got is what came back so far.
func (r *Raw) Got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

// Wait waits for a message that begins with the prefix.
func (r *Raw) Wait(timeout time.Duration, prefix string) (string, bool) {
	end := time.Now().Add(timeout)
	for {
		for _, m := range r.Got() {
			if strings.HasPrefix(m, prefix) {
				return m, true
			}
		}
		if time.Now().After(end) {
			return "", false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A rawRequest is a request of one's own making.
type rawRequest struct {
	method, user string // user of the Request-URI and of To
	caller       string // empty: +493023125000
	callID, tag  string // of From
	branch       string
	toTag        string
	cseq         int
	headers      string // further ones, each with its line end
	body         string // SDP
}

func (r *Raw) request(q rawRequest) string {
	me := r.Addr()
	to := fmt.Sprintf("<sip:%s@%s>", q.user, r.to)
	if q.toTag != "" {
		to += ";tag=" + q.toTag
	}
	content := ""
	if q.body != "" {
		content = "Content-Type: application/sdp\n"
	}
	body := strings.ReplaceAll(q.body, "\n", "\r\n")
	return fmt.Sprintf("%s sip:%s@%s SIP/2.0\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%s;rport\nMax-Forwards: 70\nFrom: <sip:%s@%s>;tag=%s\nTo: %s\nCall-ID: %s\nCSeq: %d %s\nContact: <sip:raw@%s>\n%s%sContent-Length: %d\n\n%s",
		q.method, q.user, r.to, me, q.branch, or(q.caller, "+493023125000"), me, q.tag, to, q.callID, max(q.cseq, 1), q.method, me, q.headers, content, len(body), q.body)
}

func word() string { return fmt.Sprintf("%016x", rand.Uint64()) }

// invite is a new call to a number, with sound at an address.
func (r *Raw) invite(number string, media netip.AddrPort) rawRequest {
	return rawRequest{method: "INVITE", user: number, callID: word(), tag: word(), branch: word(), body: sdp(media)}
}

func sdp(media netip.AddrPort) string {
	return fmt.Sprintf("v=0\no=raw 1 1 IN IP4 %s\ns=-\nc=IN IP4 %s\nt=0 0\nm=audio %d RTP/AVP 0 101\na=rtpmap:0 PCMU/8000\na=rtpmap:101 telephone-event/8000\n", media.Addr(), media.Addr(), media.Port())
}

var toTag = regexp.MustCompile(`(?m)^To:.*;tag=([^;\s]+)`)
var contact = regexp.MustCompile(`(?m)^Contact:.*<(sip:[^>]+)>`)

// Call places a call and acknowledges the answer. It returns where the gateway
// wants sound, and what hangs up.
func (r *Raw) Call(t testing.TB, number string, media netip.AddrPort) (to netip.AddrPort, hangUp func()) {
	t.Helper()
	return r.CallWith(t, r.invite(number, media))
}

// CallWith is Call with an INVITE of one's own.
func (r *Raw) CallWith(t testing.TB, q rawRequest) (to netip.AddrPort, hangUp func()) {
	t.Helper()
	r.Send(r.request(q))
	answer, ok := r.Wait(15*time.Second, "SIP/2.0 200")
	if !ok {
		t.Fatalf("no answer to a call from %s: %q", r.Addr(), r.Got())
	}
	to, err := mediaAddress(answer)
	if err != nil {
		t.Fatal(err)
	}
	q.toTag = toTag.FindStringSubmatch(answer)[1]
	ack := q
	ack.method, ack.branch, ack.body = "ACK", word(), ""
	r.Send(r.request(ack))
	return to, func() {
		bye := q
		bye.method, bye.branch, bye.body, bye.cseq = "BYE", word(), "", 2
		r.Send(r.request(bye))
	}
}
