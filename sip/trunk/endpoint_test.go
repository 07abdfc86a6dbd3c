package trunk

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

// A provider is a registrar on real sockets that asks for a password.
type realProvider struct {
	mu       sync.Mutex
	contacts []string
	expires  []string
	bad      int
}

func (p *realProvider) Screen(netip.AddrPort, string) bool { return true }

func (p *realProvider) Bad(netip.AddrPort, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad++
}

func (p *realProvider) Invite(c *dialog.Call) { _ = c.Reject(486, "Busy Here") }

func (p *realProvider) Trunk(r *dialog.Request) dialog.Verdict {
	if r.Method != "REGISTER" {
		return dialog.Verdict{Action: dialog.Accept}
	}
	if r.Header("Authorization") != "" {
		p.mu.Lock()
		p.contacts = append(p.contacts, r.Contact.URI)
		p.expires = append(p.expires, r.Header("Expires"))
		p.mu.Unlock()
	}
	return dialog.Verdict{
		Action: dialog.Challenge,
		Code:   200,
		Lookup: func(user, realm string) (string, string, bool) { return "secret", user, user == "alice" },
		Headers: []dialog.Header{
			{Name: "Contact", Value: fmt.Sprintf("<%s>;expires=%s", r.Contact.URI, r.Header("Expires"))},
		},
	}
}

func startEndpoint(t *testing.T, h dialog.Handler) (*dialog.Endpoint, string) {
	t.Helper()
	e, err := dialog.New(dialog.Config{Listen: []string{"udp://127.0.0.1:0"}, Realm: "trunk.test"}, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return e, strings.TrimPrefix(e.Addrs()[0], "udp://")
}

// With a real endpoint on both sides: challenge, digest, registration, its end.
func TestRealRegistration(t *testing.T) {
	for name, password := range map[string]string{"the right password": "secret", "a wrong one": "guess"} {
		t.Run(name, func(t *testing.T) {
			p := &realProvider{}
			_, addr := startEndpoint(t, p)
			e, _ := startEndpoint(t, &realProvider{})
			trunks := New(e, Options{NAT: true}, slog.New(slog.DiscardHandler))
			trunks.Set([]Line{{
				Trunk: call.Trunk{
					ID: "p", Direction: "both", Targets: []string{"sip:" + addr},
					Register: call.TrunkRegister{AOR: "sip:alice@trunk.test", Expires: 300},
					Auth:     call.TrunkAuth{Username: "alice", Password: password},
				},
				Contact: "token",
			}})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- trunks.Run(ctx) }()
			s, err := trunks.Refresh(context.Background(), "p")
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if password != "secret" {
				if s.Registered != regFailed || !strings.Contains(s.Problem, "user name") {
					t.Errorf("state: %+v", s)
				}
				return
			}
			if s.Registered != registered || s.Problem != "" || !s.Up || s.Ping <= 0 {
				t.Errorf("state: %+v", s)
			}
			if d := time.Until(s.Expires); d > 5*time.Minute || d < 4*time.Minute {
				t.Errorf("expires in %s", d)
			}
			if got := trunks.Sources("p"); len(got) != 1 || got[0] != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("the registrar answers from %v", got)
			}
			if n := len(p.expires); n < 2 || p.expires[n-1] != "0" || p.expires[0] != "300" {
				t.Errorf("registered for %v seconds; the last must be 0", p.expires)
			}
			for _, c := range p.contacts {
				if userOf(c) != "token" {
					t.Errorf("Contact %s", c)
				}
			}
		})
	}
}
