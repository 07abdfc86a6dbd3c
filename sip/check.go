package sip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/numbers"
	"github.com/trunkhall/trunkhall/sip/trunk"
)

// A TrunkCheck is what trying a trunk has shown.
type TrunkCheck struct {
	Trunk string      `json:"trunk"`
	Name  string      `json:"name,omitempty"`
	Steps []CheckStep `json:"steps"`
}

// A CheckStep is one thing that was tried.
type CheckStep struct {
	Step   string  `json:"step"` // dns, register, options, codecs, policy, call, sound
	Target string  `json:"target,omitempty"`
	Result string  `json:"result"` // ok, warn, fail
	Text   string  `json:"text"`
	MS     float64 `json:"ms,omitempty"` // how long it took
}

// OK reports whether nothing failed. Warnings are no failures.
func (c TrunkCheck) OK() bool {
	return !slices.ContainsFunc(c.Steps, func(s CheckStep) bool { return s.Result == "fail" })
}

func (c *TrunkCheck) add(step, target, result string, took time.Duration, format string, args ...any) {
	c.Steps = append(c.Steps, CheckStep{
		Step: step, Target: target, Result: result, Text: fmt.Sprintf(format, args...),
		MS: float64(took.Microseconds()) / 1000,
	})
}

// checkLimit bounds one request of a check.
const checkLimit = 10 * time.Second

// Check tries a trunk: names are looked up, it is registered anew, each target is
// asked with OPTIONS, and codecs are compared. No call is placed.
func (s *Server) Check(ctx context.Context, id string) (TrunkCheck, error) {
	t, ok := s.lines.Load().trunk(id)
	if !ok {
		return TrunkCheck{}, fmt.Errorf("trunk %q: %w", id, call.ErrNotFound)
	}
	c := TrunkCheck{Trunk: t.ID, Name: t.Name}
	targets := s.targets(t)
	slices.Sort(targets)
	if len(targets) == 0 {
		c.add("dns", "", "ok", 0, "the trunk has no targets: it only takes calls in from %s", strings.Join(t.In.CIDRs, ", "))
	}
	lost := make(map[string]bool)
	for _, uri := range targets {
		lost[uri] = !s.checkNames(ctx, &c, t, uri)
	}
	if t.Register.AOR != "" {
		s.checkRegistration(ctx, &c, t)
	}
	for _, uri := range targets {
		if !lost[uri] {
			s.checkOptions(ctx, &c, t, uri)
		}
	}
	if t.outbound() {
		for _, risk := range numbers.Risks(t.Allow, t.Deny) {
			c.add("policy", "", "warn", 0, "%s", risk)
		}
		if limits := s.cfg.Limits; limits.UserMinutes == 0 && limits.MaxDailyMinutes == 0 {
			c.add("policy", "", "warn", 0, "no budget is set: sip.limits.max_daily_minutes bounds what a stolen password can cost")
		}
	}
	return c, ctx.Err()
}

// checkNames looks up where a target is, and reports whether it is anywhere.
func (s *Server) checkNames(ctx context.Context, c *TrunkCheck, t line, uri string) bool {
	where := uri
	if t.Outbound != "" {
		where = t.Outbound
	}
	began := time.Now()
	hops, err := s.endpoint.Resolve(ctx, where)
	took := time.Since(began)
	if err != nil || len(hops) == 0 {
		if err == nil {
			err = errors.New("no address")
		}
		c.add("dns", uri, "fail", took, "%s", trunk.Explain(where, t.Trunk, 0, "", err))
		return false
	}
	var all []string
	for _, h := range hops {
		if text := h.Network + " " + h.Addr.String(); !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	c.add("dns", uri, "ok", took, "%s", strings.Join(all, ", then "))
	return true
}

func (s *Server) checkRegistration(ctx context.Context, c *TrunkCheck, t line) {
	began := time.Now()
	state, err := s.RefreshTrunk(ctx, t.ID)
	took := time.Since(began)
	switch {
	case err != nil:
		c.add("register", "", "fail", took, "%s", err)
	case state.Registered != "registered":
		c.add("register", "", "fail", took, "%s", state.Problem)
	default:
		text := fmt.Sprintf("registered as %s for %d seconds", t.Register.AOR, int(time.Until(state.Expires).Seconds()+0.5))
		if ip := s.trunks.Public(t.ID); ip.IsValid() {
			text += "; the provider sees us at " + ip.String()
		}
		result := "ok"
		if strings.Contains(state.Problem, "does not list") {
			result, text = "warn", state.Problem
		}
		c.add("register", "", result, took, "%s", text)
	}
}

// checkOptions asks a target what it can do (RFC 3261 §11).
func (s *Server) checkOptions(ctx context.Context, c *TrunkCheck, t line, uri string) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	target := s.target(t, uri)
	target.Username, target.Password = "", ""
	r, err := s.endpoint.Request(ctx, dialog.Message{
		Method: "OPTIONS", From: t.Register.AOR, Contact: t.token, Target: target,
		Headers: []dialog.Header{{Name: "Accept", Value: "application/sdp"}},
	})
	if err != nil || r.Code == 408 || r.Code == 503 {
		c.add("options", uri, "fail", r.Elapsed, "%s", trunk.Explain(uri, t.Trunk, r.Code, r.Reason, err))
		return
	}
	text := "answers"
	if server := r.Header("Server") + r.Header("User-Agent"); server != "" {
		text += " (" + printable(server) + ")"
	}
	if r.Code >= 300 {
		text += fmt.Sprintf(" with %d %s, which shows that it is there", r.Code, printable(r.Reason))
	}
	c.add("options", uri, "ok", r.Elapsed, "%s", text)
	s.checkCodecs(c, t, uri, r)
}

// checkCodecs compares the codecs of an answer to OPTIONS, if it names any, with
// the trunk's.
func (s *Server) checkCodecs(c *TrunkCheck, t line, uri string, r dialog.Response) {
	ours := codecs(t.Codecs)
	var names []string
	for _, codec := range ours {
		names = append(names, string(codec))
	}
	theirs := offered(r.Body)
	if len(theirs) == 0 {
		c.add("codecs", uri, "ok", 0, "it does not say which codecs it has; calls offer %s", strings.Join(names, ", "))
		return
	}
	var both []string
	for _, codec := range ours {
		if slices.Contains(theirs, codec) {
			both = append(both, string(codec))
		}
	}
	if len(both) == 0 {
		c.add("codecs", uri, "fail", 0, "no codec in common: calls offer %s", strings.Join(names, ", "))
		return
	}
	c.add("codecs", uri, "ok", 0, "in common: %s", strings.Join(both, ", "))
}

// offered returns those of our codecs that a session description names.
func offered(sdp []byte) (list []audio.Codec) {
	inAudio := false
	add := func(name string) {
		if c, ok := codecByName(name); ok && !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	for line := range strings.Lines(string(sdp)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "m="):
			f := strings.Fields(line)
			inAudio = f[0] == "m=audio"
			for _, payload := range f[min(3, len(f)):] { // static payload types need no rtpmap, RFC 3551 §6
				if static, ok := map[string]string{"0": "PCMU", "8": "PCMA", "9": "G722"}[payload]; ok && inAudio {
					add(static)
				}
			}
		case inAudio && strings.HasPrefix(line, "a=rtpmap:"):
			_, format, _ := strings.Cut(line, " ")
			name, _, _ := strings.Cut(format, "/")
			add(name)
		}
	}
	return list
}

// testTalk is how long a test call lasts after the answer.
const testTalk = 4 * time.Second

// checker is who a test call is charged to.
const checker = "sip check"

// TestCall calls a number over a trunk, as any call out with its policy, budget
// and record, waits for the answer, listens for a moment and hangs up.
func (s *Server) TestCall(ctx context.Context, id, number string) (TrunkCheck, error) {
	c := TrunkCheck{Trunk: id}
	began := time.Now()
	leg, err := s.Dial(ctx, call.DialRequest{
		Room: call.RoomName("sip-check-" + strings.ToLower(rand.Text()[:12])), By: checker,
		Number: number, Trunk: id, Name: "Test call", HideNumber: true, Ringing: 45 * time.Second, Longest: time.Minute,
	})
	if err != nil {
		c.add("call", number, "fail", time.Since(began), "not placed: %s", reasonOf(err))
		return c, nil
	}
	rang := false
	for seen := leg.State; leg.State != call.LegEnded && leg.Answered.IsZero(); seen = leg.State {
		if !rang && !leg.Ringing.IsZero() {
			rang = true
			c.add("call", number, "ok", leg.Ringing.Sub(began), "rings")
		}
		if leg, err = s.Wait(ctx, leg.ID, seen); err != nil {
			return c, errors.Join(err, s.Hangup(context.WithoutCancel(ctx), leg.ID))
		}
	}
	if leg.Answered.IsZero() {
		c.add("call", number, "fail", time.Since(began), "not answered: %s", leg.Text)
		return c, nil
	}
	c.add("call", number, "ok", leg.Answered.Sub(began), "answered")
	select {
	case <-time.After(testTalk):
	case <-ctx.Done():
	}
	if now, ok := s.Leg(leg.ID); ok {
		leg = now
	}
	ended := leg.State == call.LegEnded
	if !ended {
		if err := s.Hangup(context.WithoutCancel(ctx), leg.ID); err != nil && !errors.Is(err, call.ErrNotFound) {
			return c, err
		}
	}
	s.checkSound(&c, leg)
	if ended && leg.Cause != call.CauseHangup {
		c.add("call", number, "fail", time.Since(began), "ended early: %s", leg.Text)
	}
	return c, ctx.Err()
}

// checkSound says what was heard of a call.
func (s *Server) checkSound(c *TrunkCheck, leg call.Leg) {
	st := leg.Stats
	codec := leg.Codec
	if leg.SRTP != "" {
		codec += ", encrypted with " + strings.ToUpper(leg.SRTP)
	}
	if st.Packets == 0 {
		c.add("sound", "", "fail", 0,
			"nothing is heard (%s): let UDP to the ports %s in, and check sip.external_ip", codec, s.cfg.RTPPorts)
		return
	}
	text := fmt.Sprintf("%s: %d packets, %d lost, jitter %.1f ms", codec, st.Packets, st.Lost, float64(st.Jitter.Microseconds())/1000)
	if st.MOS > 0 {
		text += fmt.Sprintf(", estimated quality %.1f of 5", st.MOS)
	}
	result := "ok"
	if st.Lost*20 > st.Packets || st.Jitter > 60*time.Millisecond {
		result = "warn"
	}
	c.add("sound", "", result, 0, "%s", text)
}

// An Explanation is the dial plan's trail for a number, with everything else that
// would be asked before a call.
type Explanation struct {
	numbers.Result
	By string `json:"by,omitempty"`
}

// The further reasons of an Explanation.
const (
	reasonRights numbers.Reason = "rights"
	reasonLimit  numbers.Reason = "limit"
)

func (e *Explanation) step(rule, result, trunk, format string, args ...any) {
	e.Steps = append(e.Steps, numbers.Step{Rule: rule, Result: result, Trunk: trunk, Text: fmt.Sprintf(format, args...)})
}

func (e *Explanation) refuse(why numbers.Reason, text string) {
	if e.Reason == numbers.Allowed {
		e.Reason, e.Text = why, text
	}
}

// ExplainFor goes through everything that is asked before by calls a number into
// the Matrix room roomID (empty: a media room), without calling it. by is a Matrix
// user ID, an API key, or empty for nobody in particular.
func (s *Server) ExplainFor(ctx context.Context, typed, trunkID, by, roomID string) Explanation {
	all := s.lines.Load()
	e := explain(s.plan, all, typed, trunkID, by)
	if by == "" || e.Number == "" {
		return e
	}
	age := time.Duration(-1)
	if strings.HasPrefix(by, "@") {
		age = s.explainUser(ctx, &e, by, roomID)
	}
	for i, choice := range e.Trunks {
		t, _ := all.trunk(choice.Trunk)
		err := s.limits.Would(time.Now(), guard.Request{
			Direction: call.Outbound, Trunk: t.ID, MaxCalls: t.MaxCalls, MaxCPS: t.MaxCPS, By: by, Age: age,
		})
		if err == nil {
			e.step("limits", "ok", t.ID, "nothing is used up")
			continue
		}
		name := ""
		if limit := new(guard.LimitError); errors.As(err, &limit) {
			name = " (" + limit.Limit + ")"
		}
		e.step("limits", "refuse", t.ID, "%s%s", reasonOf(err), name)
		if i == 0 {
			e.refuse(reasonLimit, reasonOf(err))
		}
	}
	return e
}

// explainUser adds whether a user may dial and returns the age of the account.
func (s *Server) explainUser(ctx context.Context, e *Explanation, by, roomID string) time.Duration {
	age := time.Duration(-1)
	if ager, ok := s.directory.(Ager); ok {
		made, err := ager.AccountCreated(ctx, by)
		if errors.Is(err, call.ErrNotFound) {
			e.step("rights", "refuse", "", "there is no user %s", by)
			e.refuse(reasonRights, "there is no such user")
			return age
		}
		if err == nil {
			age = max(0, time.Since(made))
			e.step("rights", "ok", "", "the account was made on %s", made.Format(time.DateOnly))
		}
	}
	if roomID == "" {
		e.step("rights", "skip", "", "whether the user may call from a room depends on the room")
		return age
	}
	if err := s.directory.MayDial(ctx, by, roomID); err != nil {
		e.step("rights", "refuse", "", "in %s: %s", roomID, err)
		e.refuse(reasonRights, err.Error())
		return age
	}
	e.step("rights", "ok", "", "may call into %s", roomID)
	return age
}

// ExplainConfig is ExplainFor from the configuration alone, without a server that
// runs: trunks made by API, rights and budgets are left out.
func ExplainConfig(cfg Config, typed, trunkID, by string) (Explanation, error) {
	plan, err := numbers.New(cfg.numbers())
	if err != nil {
		return Explanation{}, err
	}
	s := &Server{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	all := &lines{}
	for _, t := range cfg.Trunks {
		all.trunks = append(all.trunks, s.newLine(t, "config"))
	}
	return explain(plan, all.withRules(cfg.Dispatch, nil), typed, trunkID, by), nil
}

func explain(plan *numbers.Plan, all *lines, typed, trunkID, by string) Explanation {
	e := Explanation{By: by, Result: plan.Route(numbers.Query{
		Typed: typed, Trunk: trunkID, Trunks: all.queryTrunks(), Own: all.own(),
	})}
	for _, choice := range e.Trunks {
		t, _ := all.trunk(choice.Trunk)
		shown, err := plan.Show(t.Trunk, numbers.Wish{By: by})
		switch {
		case err != nil:
			e.step("caller_id", "refuse", t.ID, "%s", err)
		case shown.Number == "":
			e.step("caller_id", "ok", t.ID, "shows what the provider puts there: caller_id.default is not set")
		default:
			e.step("caller_id", "ok", t.ID, "shows %s", numbers.Display(shown.Number))
		}
	}
	return e
}

// ForCheck changes a configuration for a gateway that only lives for a check of
// one trunk (all if id is empty) beside nothing else: on ports of its own, without
// taking calls. It returns call.ErrNotFound if there is no such trunk.
func (c Config) ForCheck(id, recordsDir string) (Config, error) {
	if id != "" {
		i := slices.IndexFunc(c.Trunks, func(t call.Trunk) bool { return t.ID == id })
		if i < 0 {
			return c, fmt.Errorf("trunk %q is not in the configuration: %w", id, call.ErrNotFound)
		}
		c.Trunks = []call.Trunk{c.Trunks[i]}
	}
	listen := c.Listen
	c.Listen = nil
	for _, l := range listen {
		network, addr, _ := strings.Cut(l, "://")
		if ap, err := netip.ParseAddrPort(addr); err == nil {
			c.Listen = append(c.Listen, network+"://"+netip.AddrPortFrom(ap.Addr(), 0).String())
		}
	}
	c.Dispatch, c.Rooms, c.Enabled = nil, nil, true
	c.Records.Dir = recordsDir
	return c, nil
}
