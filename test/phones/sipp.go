package phones

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A Scenario is one of the files in scenarios/, to be played by SIPp. It ends
// with status 0 only if every message came as the file has it.
type Scenario struct {
	File      string         // without .xml
	Target    netip.AddrPort // calls this; zero: waits to be called
	Number    string         // whom it calls
	Caller    string         // empty: +493023125000
	IP        string         // its own; empty: 127.0.0.1
	Port      int            // its own; 0: any free one
	Transport string         // u1, t1; empty: u1
	Media     netip.AddrPort // what its SDP says, where the file has [rtp_ip] and [rtp_port]; zero: itself
	Calls     int            // 0: 1
	Rate      int            // new calls a second; 0: 10
	Timeout   time.Duration  // of everything; 0: 60 s
}

// repeats are the scenarios in which a message comes again on purpose. SIPp
// would take that for a packet lost and repeat what it said last.
var repeats = map[string]bool{"lost-ack": true, "lost-bye": true, "lost-bye-ok": true, "retransmitted-invite": true, "prack": true, "prack-wrong": true}

// A Sipp is one SIPp at work.
type Sipp struct {
	*program
	Scenario
	dir string
}

// Play starts a scenario. Calls of a waiting one (a server) may come at once.
func Play(t testing.TB, s Scenario) *Sipp {
	t.Helper()
	s.IP = or(s.IP, "127.0.0.1")
	s.Caller = or(s.Caller, "+493023125000")
	s.Transport = or(s.Transport, "u1")
	s.Calls = max(s.Calls, 1)
	if s.Port == 0 {
		s.Port = FreePort(t, s.IP)
	}
	if s.Timeout == 0 {
		s.Timeout = time.Minute
	}
	if s.Rate == 0 {
		s.Rate = 10
	}
	p := &Sipp{Scenario: s, dir: t.TempDir()}
	ip := s.IP
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	args := []string{}
	if s.Target.IsValid() {
		args = append(args, s.Target.String())
	}
	args = append(args,
		"-sf", filepath.Join(folder(), "scenarios", s.File+".xml"),
		"-i", ip, "-p", strconv.Itoa(s.Port), "-mi", s.IP, "-mp", strconv.Itoa(FreePorts(t, s.IP, 8)),
		"-t", s.Transport, "-m", strconv.Itoa(s.Calls), "-r", strconv.Itoa(s.Rate), "-l", "1000",
		"-key", "caller", s.Caller,
		"-timeout", strconv.Itoa(int(s.Timeout.Seconds())), "-timeout_error",
		"-recv_timeout", strconv.Itoa(int(s.Timeout.Milliseconds())),
		"-nostdin", "-trace_err", "-error_file", filepath.Join(p.dir, "errors"),
	)
	if s.Media.IsValid() {
		args = append(args, "-key", "rtp_ip", s.Media.Addr().String(), "-key", "rtp_port", strconv.Itoa(int(s.Media.Port())))
	}
	if repeats[s.File] {
		args = append(args, "-nr")
	}
	if s.Number != "" {
		args = append(args, "-s", s.Number)
	}
	if s.Calls == 1 {
		args = append(args, "-trace_msg", "-message_file", filepath.Join(p.dir, "messages"))
	}
	p.program = start(t, "SIPp "+s.File, p.dir, "sipp", args...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("--- messages of SIPp %s\n%s", s.File, tail(p.Messages(), 12000))
		}
	})
	if !s.Target.IsValid() {
		eventually(t, 20*time.Second, "SIPp "+s.File+" listens", func() error {
			if s.Transport == "t1" {
				c, err := net.Dial("tcp", p.Addr().String())
				if err == nil {
					c.Close()
				}
				return err
			}
			if free(p.Addr()) {
				return errNotYet
			}
			return nil
		})
	}
	return p
}

// Addr is where it listens.
func (p *Sipp) Addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(p.IP), uint16(p.Port))
}

// Messages is what it sent and received.
func (p *Sipp) Messages() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "messages"))
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// Received are the messages that came in, in order.
func (p *Sipp) Received() []string {
	var all []string
	for _, part := range strings.Split(p.Messages(), "----------------------------------------------- ")[1:] {
		if head, message, ok := strings.Cut(part, "\n\n"); ok && strings.Contains(head, "received") {
			all = append(all, strings.TrimSpace(message))
		}
	}
	return all
}

// Result waits until the scenario has ended and says what went wrong.
func (p *Sipp) Result() error {
	err := p.wait(p.Timeout + 10*time.Second)
	if err == nil {
		return nil
	}
	b, _ := os.ReadFile(filepath.Join(p.dir, "errors"))
	return fmt.Errorf("SIPp %s: %w\n%s", p.File, err, tail(string(b), 4000))
}

// Must waits until the scenario has ended and fails the test if it went wrong.
func (p *Sipp) Must() {
	p.t.Helper()
	if err := p.Result(); err != nil {
		p.t.Error(err)
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "... " + s[len(s)-n:]
	}
	return s
}
