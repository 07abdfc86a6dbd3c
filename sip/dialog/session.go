package dialog

import (
	"strconv"
	"strings"
	"time"
)

// sessionState is the session timer of RFC 4028.
type sessionState struct {
	interval int  // seconds; 0: none
	weDo     bool // we are the refresher
	minSE    int
	peerSE   string // refresher that the peer named: "", "uac", "uas"
	timer    *time.Timer
}

// sessionExpires reads Session-Expires: seconds, and the refresher.
func sessionExpires(m *message) (seconds int, refresher string) {
	v := m.get("Session-Expires")
	if v == "" {
		return 0, ""
	}
	number, rest, _ := strings.Cut(v, ";")
	n, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || n <= 0 {
		return 0, ""
	}
	if ps, ok := parseParams(";"+rest, false); ok {
		refresher, _ = ps.get("refresher")
	}
	return min(n, 1<<20), strings.ToLower(refresher)
}

func minSEOf(m *message) int {
	number, _, _ := strings.Cut(m.get("Min-SE"), ";")
	n, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || n < 0 {
		return 0
	}
	return min(n, 1<<20)
}

// negotiateSession decides, as the one called or asked to refresh, on interval
// and refresher (RFC 4028 §9): theirs if they named one, shortened to what we
// wish; else ours. If they cannot refresh, we do.
func (c *Call) negotiateSession(m *message, minSE int) {
	s := &c.session
	s.minSE = minSE
	se, refresher := sessionExpires(m)
	want := c.opts.SessionExpires
	switch {
	case se == 0 && want == 0:
		s.interval = 0
		return
	case se == 0:
		se = max(want, minSEOf(m), minSE)
	case want > 0 && want < se:
		se = max(want, minSEOf(m), minSE)
	}
	s.interval = se
	peer := m.has("Supported", "timer") || m.has("Require", "timer")
	switch {
	case !peer:
		s.weDo = true
	case refresher == "uac":
		s.weDo = false
	case refresher == "uas":
		s.weDo = true
	default:
		// Ours to choose: whoever began the session interval keeps it up.
		s.weDo = want > 0
	}
}

// sessionHeaders are the fields of a 2xx that says what was decided.
func (c *Call) sessionHeaders(m *message) []Header {
	s := &c.session
	if s.interval == 0 {
		return nil
	}
	who := "uac"
	if s.weDo {
		who = "uas"
	}
	hs := []Header{{"Session-Expires", strconv.Itoa(s.interval) + ";refresher=" + who}}
	if who == "uac" {
		hs = append(hs, Header{"Require", "timer"})
	}
	return hs
}

// askSession are the fields of an INVITE or UPDATE of ours. again keeps the roles
// of a session that has begun.
func (c *Call) askSession(again bool) []Header {
	s := &c.session
	n := s.interval
	if !again {
		n = c.opts.SessionExpires
	}
	if n == 0 {
		return nil
	}
	n = max(n, s.minSE)
	v := strconv.Itoa(n)
	if again {
		if s.weDo {
			v += ";refresher=uac"
		} else {
			v += ";refresher=uas"
		}
	}
	hs := []Header{{"Session-Expires", v}}
	if s.minSE > 0 {
		hs = append(hs, Header{"Min-SE", strconv.Itoa(s.minSE)})
	}
	return hs
}

// takeSession reads, as the one who asked, what a 2xx decides.
func (c *Call) takeSession(m *message) {
	s := &c.session
	se, refresher := sessionExpires(m)
	s.interval = se
	s.weDo = refresher != "uas"
	c.startSession()
}

// startSession sets the timer anew: half way for the refresher, and for the other
// side a third or 32 seconds before the end (RFC 4028 §10).
func (c *Call) startSession() {
	c.stopSession()
	s := &c.session
	if s.interval == 0 || c.over {
		return
	}
	whole := time.Duration(s.interval) * time.Second
	if s.weDo {
		s.timer = c.after(whole/2, c.refresh)
		return
	}
	s.timer = c.after(whole-min(32*time.Second, whole/3), func() {
		if c.over {
			return
		}
		c.bye([]Header{{"Reason", `SIP;cause=408;text="session timer expired"`}})
		c.end(Ended{Code: 200, Reason: "the session was not refreshed", Timeout: true, ByUs: true, Cause: EndSession})
	})
}

func (c *Call) stopSession() { stopTimer(c.session.timer) }

// refresh keeps the session alive: by UPDATE if the peer takes it, else by a
// re-INVITE with the session as it is.
func (c *Call) refresh() {
	if c.over || c.State() != Talking {
		if !c.over {
			c.session.timer = c.after(time.Second, c.refresh)
		}
		return
	}
	if !c.peerAllows["UPDATE"] {
		if c.localSDP == nil {
			return
		}
		c.offer(&offerOut{sdp: c.localSDP, refresh: true, report: func([]byte, error) {}})
		return
	}
	c.update(0)
}

func (c *Call) update(tries int) {
	c.request("UPDATE", append(c.askSession(true), Header{"Supported", supported}), "", nil, func(res *message, err error) {
		switch {
		case c.lost(res, err):
		case res.code < 300:
			c.refreshTarget(res)
			c.takeSession(res)
		case res.code == 422 && tries < 3:
			c.session.minSE = max(c.session.minSE, minSEOf(res))
			c.session.interval = max(c.session.interval, c.session.minSE)
			c.update(tries + 1)
		case res.code == 491 || res.code == 500 || res.code == 503:
			if tries < 5 {
				c.after(c.glareWait(), func() {
					if !c.over {
						c.update(tries + 1)
					}
				})
				return
			}
			c.expireSession()
		case res.code == 405 || res.code == 501:
			c.peerAllows["UPDATE"] = false
			c.refresh()
		default:
			c.expireSession()
		}
	})
}

// expireSession ends a session that could not be refreshed, not at once but when
// its time is up: the other side may yet refresh it.
func (c *Call) expireSession() {
	rest := time.Duration(c.session.interval) * time.Second / 2
	c.session.timer = c.after(rest-min(rest/3, 10*time.Second), func() {
		if c.over {
			return
		}
		c.bye([]Header{{"Reason", `SIP;cause=408;text="session timer expired"`}})
		c.end(Ended{Code: 200, Reason: "the session could not be refreshed", Timeout: true, ByUs: true, Cause: EndSession})
	})
}
