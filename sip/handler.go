package sip

import (
	"crypto/subtle"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// doorman is the dialog.Handler: it decides who is listened to, before anybody is
// answered.
type doorman struct{ s *Server }

// Screen implements dialog.Handler: banned addresses and floods are not read.
func (h doorman) Screen(src netip.AddrPort, network string) bool {
	ip, now := src.Addr().Unmap(), time.Now()
	if h.s.bans.Banned(now, ip) {
		h.s.count.step("ban")
		return false
	}
	ok, banned := h.s.bans.Allow(now, ip)
	if banned != nil {
		h.s.logBan(*banned)
	}
	if !ok {
		h.s.count.step("rate")
	}
	return ok
}

// Bad implements dialog.Handler.
func (h doorman) Bad(src netip.AddrPort, why string) {
	h.s.count.step("bad")
	h.s.bad(src.Addr().Unmap(), why)
}

// bad counts toward a ban. Hosts of trunks are never banned.
func (s *Server) bad(ip netip.Addr, why string) {
	if ban, banned := s.bans.Bad(time.Now(), ip, why); banned {
		s.logBan(ban)
	}
}

// logBan writes a line that fail2ban and people can read.
func (s *Server) logBan(b guard.Ban) {
	s.log.Warn("sip_ban", "ip", b.IP.String(), "why", b.Why, "until", b.Until)
}

// Trunk implements dialog.Handler. A sender is known by its address, by the token
// that only the registrar of a trunk has been told, or by a digest. Everybody else
// is told nothing: not even that there is a server.
func (h doorman) Trunk(r *dialog.Request) dialog.Verdict {
	s := h.s
	ip := r.Source.Addr().Unmap()
	if ban, banned := s.bans.Agent(time.Now(), ip, r.UserAgent); banned {
		s.logBan(ban)
		return dialog.Verdict{}
	}
	all := s.lines.Load()
	if t, ok := s.known(all, r, ip); ok {
		v := s.accept(t, r)
		if t.In.Digest && r.Method == "INVITE" && !s.registered(t, r) && !s.registrar(t, ip) {
			v = s.challenge([]line{t})
		}
		return v
	}
	if r.Method == "OPTIONS" {
		// Providers ask those who call over them whether they are there.
		if t, ok := s.hostOf(all, ip); ok {
			return s.accept(t, r)
		}
	}
	var digest []line
	for _, t := range all.trunks {
		if t.inbound() && t.In.Digest && len(t.networks) == 0 {
			digest = append(digest, t)
		}
	}
	if r.Method == "INVITE" && len(digest) > 0 {
		return s.challenge(digest)
	}
	s.count.step("unknown")
	s.bad(ip, "no trunk")
	s.log.Debug("a stranger", "ip", ip, "method", r.Method)
	if s.cfg.Block.Unknown == "reject" {
		return dialog.Verdict{Action: dialog.Refuse, Code: 403}
	}
	return dialog.Verdict{}
}

// known finds the trunk by the sender's address, or by our registration's token in
// the Request-URI.
func (s *Server) known(all *lines, r *dialog.Request, ip netip.Addr) (line, bool) {
	from := all.from(ip)
	from = slices.DeleteFunc(from, func(t line) bool { return !t.inbound() && r.Method == "INVITE" })
	// Two trunks of one provider are told apart by the number called.
	if len(from) > 1 {
		to, _ := s.plan.E164(r.User)
		for _, t := range from {
			if len(t.In.Numbers) > 0 && (numbers.MatchAny(t.In.Numbers, to) || numbers.MatchAny(t.In.Numbers, r.User)) {
				return t, true
			}
		}
	}
	for _, t := range from {
		if len(t.In.Numbers) == 0 {
			return t, true
		}
	}
	if len(from) > 0 {
		return from[0], true
	}
	for _, t := range all.trunks {
		if t.inbound() && s.registered(t, r) {
			return t, true
		}
	}
	for _, t := range all.trunks {
		if t.inbound() && s.registrar(t, ip) {
			return t, true
		}
	}
	return line{}, false
}

// registered reports whether a request was sent to the contact of our registration
// over the trunk.
func (s *Server) registered(t line, r *dialog.Request) bool {
	return t.Register.AOR != "" && subtle.ConstantTimeCompare([]byte(r.User), []byte(t.token)) == 1
}

func (s *Server) accept(t line, r *dialog.Request) dialog.Verdict {
	return dialog.Verdict{Action: dialog.Accept, Trunk: t.ID, Options: s.callOptions(t)}
}

// challenge asks for the digest of one of the trunks.
func (s *Server) challenge(of []line) dialog.Verdict {
	find := func(user string) (line, bool) {
		for _, t := range of {
			if t.Auth.Username == user && t.Auth.Password != "" {
				return t, true
			}
		}
		return line{}, false
	}
	return dialog.Verdict{
		Action:     dialog.Challenge,
		Algorithms: s.algorithms(of),
		Lookup: func(user, realm string) (string, string, bool) {
			t, ok := find(user)
			return t.Auth.Password, t.ID, ok
		},
		CallOptions: func(id string) dialog.CallOptions {
			t, _ := s.lines.Load().trunk(id)
			return s.callOptions(t)
		},
	}
}

// algorithms are those of a challenge for one of the trunks.
func (s *Server) algorithms(of []line) []string {
	var all []string
	for _, t := range of {
		own := t.Auth.Algorithms
		if len(own) == 0 {
			own = s.cfg.DigestAlgorithms
		}
		for _, name := range own {
			if !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	if len(of) > 1 { // the better one first
		slices.SortFunc(all, func(a, b string) int { return strings.Compare(b, a) })
	}
	return all
}

// callOptions are the settings of a call over a trunk, either way.
func (s *Server) callOptions(t line) dialog.CallOptions {
	return dialog.CallOptions{
		PRACK: t.PRACK, SessionExpires: t.Expires, Networks: t.networks, ExternalIP: s.public(t.Trunk),
	}
}

// Invite implements dialog.Handler: the call has passed the door.
func (h doorman) Invite(c *dialog.Call) {
	if old := c.Replaces(); old != nil {
		l := h.s.byDialog(old)
		if l == nil || l.ask(func() error { l.takeOver(c); return nil }) != nil {
			go drain(c)
			_ = c.Reject(481, "") // RFC 3891 §3
		}
		return
	}
	l := h.s.newLeg(call.Inbound)
	l.use(c)
	l.inviteAt = time.Now()
	if !h.s.add(l) {
		go drain(c)
		_ = c.Reject(503, "Service Unavailable", dialog.Header{Name: "Retry-After", Value: "30"})
		return
	}
	defer h.s.legs.Done()
	l.run(l.inbound)
}

// drain reads a call's events until its end.
func drain(c *dialog.Call) {
	for range c.Events() {
	}
}
