package sip

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// lines are all trunks and rules as of now. The value never changes: a change
// makes a new one.
type lines struct {
	trunks   []line
	rules    []call.DispatchRule
	apiRules []call.DispatchRule // in the order in which they were made
}

// A line is one trunk with what is worked out from it.
type line struct {
	call.Trunk
	source   string // "config", "api"
	networks []netip.Prefix
	token    string // the user part of our Contact in its registration
}

func (l line) inbound() bool  { return l.Direction == "inbound" || l.Direction == "both" }
func (l line) outbound() bool { return l.Direction == "outbound" || l.Direction == "both" }

// newLine works a trunk out. The configuration's lists for all trunks are part of
// each trunk's own from here on.
func (s *Server) newLine(t call.Trunk, source string) line {
	if len(t.Allow) == 0 {
		t.Allow = s.cfg.Outbound.Allow
	}
	t.Deny = append(slices.Clone(t.Deny), s.cfg.Outbound.Deny...)
	l := line{Trunk: t, source: source, token: s.token(t.ID)}
	for _, cidr := range t.In.CIDRs {
		if p, err := parsePrefix(cidr); err == nil { // Validate has complained otherwise
			l.networks = append(l.networks, p.Masked())
		}
	}
	return l
}

// trunk returns the line of that id.
func (l *lines) trunk(id string) (line, bool) {
	i := slices.IndexFunc(l.trunks, func(t line) bool { return t.ID == id })
	if i < 0 {
		return line{}, false
	}
	return l.trunks[i], true
}

// from returns the trunks that an address may call over, those that take the
// number called first.
func (l *lines) from(ip netip.Addr) []line {
	var found []line
	for _, t := range l.trunks {
		if slices.ContainsFunc(t.networks, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) }) {
			found = append(found, t)
		}
	}
	return found
}

// networks returns the networks of every trunk.
func (l *lines) networks() []netip.Prefix {
	var all []netip.Prefix
	for _, t := range l.trunks {
		all = append(all, t.networks...)
	}
	return all
}

// queryTrunks returns the trunks as the dial plan takes them.
func (l *lines) queryTrunks() []call.Trunk {
	var all []call.Trunk
	for _, t := range l.trunks {
		all = append(all, t.Trunk)
	}
	return all
}

// own returns the patterns of our own numbers: a call to one would come back.
func (l *lines) own() []string {
	var all []string
	for _, r := range l.rules {
		for _, to := range append(slices.Clone(r.Match.Tos), r.Match.To) {
			if len(strings.TrimPrefix(strings.TrimSuffix(to, "*"), "+")) >= 3 {
				all = append(all, to)
			}
		}
	}
	// Whole numbers of trunks too. A prefix of inbound.numbers may reach beyond
	// what is dispatched here, to the desk phones of a PBX.
	for _, t := range l.trunks {
		for _, n := range t.In.Numbers {
			if !strings.HasSuffix(n, "*") && t.inbound() {
				all = append(all, n)
			}
		}
	}
	return all
}

// rulesFor returns the rules for a call, the one that counts first. Numbers are
// compared as they came and as E.164.
func (l *lines) rulesFor(trunk string, to, from []string) (all []call.DispatchRule) {
	fits := func(pattern string, patterns []string, have []string) bool {
		if pattern != "" {
			patterns = append(slices.Clone(patterns), pattern)
		}
		return len(patterns) == 0 || slices.ContainsFunc(have, func(n string) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { return p == "*" || numbers.Match(p, n) })
		})
	}
	for _, r := range l.rules {
		m := r.Match
		if m.Trunk != "" && m.Trunk != trunk || len(m.Trunks) > 0 && !slices.Contains(m.Trunks, trunk) {
			continue
		}
		if fits(m.To, m.Tos, to) && fits(m.From, m.Froms, from) {
			all = append(all, r)
		}
	}
	return all
}

// readLines makes the lines of the configuration and of the store.
func (s *Server) readLines(ctx context.Context) (*lines, error) {
	all := &lines{}
	for _, t := range s.cfg.Trunks {
		all.trunks = append(all.trunks, s.newLine(t, "config"))
	}
	var rules []call.DispatchRule
	if s.deps.Store != nil {
		trunks, err := s.deps.Store.SIPTrunks(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the trunks: %w", err)
		}
		for _, t := range trunks {
			if _, taken := all.trunk(t.ID); taken {
				s.log.Warn("a trunk of the API has the id of one in the configuration and is left out", "trunk", t.ID)
				continue
			}
			if err := s.cfg.CheckTrunk(t); err != nil {
				s.log.Warn("a trunk of the API does not fit the configuration any more", "trunk", t.ID, "err", err)
			}
			all.trunks = append(all.trunks, s.newLine(t, "api"))
		}
		if rules, err = s.deps.Store.SIPRules(ctx); err != nil {
			return nil, fmt.Errorf("read the dispatch rules: %w", err)
		}
	}
	return all.withRules(s.cfg.Dispatch, rules), nil
}

// withRules sets the rules: those of the configuration as they are written, then
// those of the API, of which the more particular ones come first: with numbers
// before without, asking for a PIN before not (as LiveKit has it).
func (l *lines) withRules(config, api []call.DispatchRule) *lines {
	l.apiRules = slices.Clone(api)
	l.rules = nil
	for i, r := range config {
		if r.ID == "" {
			r.ID = fmt.Sprintf("config-%d", i+1)
		}
		l.rules = append(l.rules, r)
	}
	sorted := slices.Clone(api)
	rank := func(r call.DispatchRule) int {
		n := 0
		if r.Match.To != "" || len(r.Match.Tos) > 0 {
			n -= 8
		}
		if r.Match.From != "" || len(r.Match.Froms) > 0 {
			n -= 4
		}
		if r.Match.Trunk != "" || len(r.Match.Trunks) > 0 {
			n -= 2
		}
		if r.Action.PIN != "" || r.Action.Type == "pin" {
			n--
		}
		return n
	}
	slices.SortStableFunc(sorted, func(a, b call.DispatchRule) int { return rank(a) - rank(b) })
	l.rules = append(l.rules, sorted...)
	return l
}

// Trunks describes every trunk, those of the configuration first.
func (s *Server) Trunks() []call.TrunkState {
	var all []call.TrunkState
	for _, t := range s.lines.Load().trunks {
		all = append(all, s.trunkState(t))
	}
	return all
}

// SetTrunk adds or replaces a trunk of the API. One of the configuration cannot be
// replaced: call.ErrConflict. An empty password leaves the one that is kept for
// the same user name.
func (s *Server) SetTrunk(ctx context.Context, t call.Trunk) error {
	s.lineMu.Lock()
	defer s.lineMu.Unlock()
	old := s.lines.Load()
	had, exists := old.trunk(t.ID)
	if exists && had.source == "config" {
		return fmt.Errorf("trunk %s is in the configuration: %w", t.ID, call.ErrConflict)
	}
	if exists && t.Auth.Password == "" && t.Auth.Username == had.Auth.Username {
		t.Auth.Password = had.Auth.Password
	}
	if err := s.cfg.checkAPITrunk(t); err != nil {
		return err
	}
	if s.deps.Store != nil {
		if err := s.deps.Store.PutSIPTrunk(ctx, t); err != nil {
			return fmt.Errorf("keep trunk %s: %w", t.ID, err)
		}
	}
	next := &lines{trunks: slices.Clone(old.trunks), rules: old.rules, apiRules: old.apiRules}
	fresh := s.newLine(t, "api")
	if i := slices.IndexFunc(next.trunks, func(l line) bool { return l.ID == t.ID }); i >= 0 {
		next.trunks[i] = fresh
	} else {
		next.trunks = append(next.trunks, fresh)
	}
	s.setLines(next)
	return nil
}

// DeleteTrunk takes a trunk of the API away. Its calls go on.
func (s *Server) DeleteTrunk(ctx context.Context, id string) error {
	s.lineMu.Lock()
	defer s.lineMu.Unlock()
	old := s.lines.Load()
	had, exists := old.trunk(id)
	switch {
	case !exists:
		return fmt.Errorf("trunk %s: %w", id, call.ErrNotFound)
	case had.source == "config":
		return fmt.Errorf("trunk %s is in the configuration: %w", id, call.ErrConflict)
	}
	if s.deps.Store != nil {
		if err := s.deps.Store.DeleteSIPTrunk(ctx, id); err != nil {
			return fmt.Errorf("forget trunk %s: %w", id, err)
		}
	}
	next := &lines{rules: old.rules, apiRules: old.apiRules}
	next.trunks = slices.DeleteFunc(slices.Clone(old.trunks), func(l line) bool { return l.ID == id })
	s.setLines(next)
	return nil
}

// Rules returns the dispatch rules in the order in which they are tried: those of
// the configuration, then those of the API.
func (s *Server) Rules() []call.DispatchRule { return slices.Clone(s.lines.Load().rules) }

// SetRule adds or replaces a rule of the API.
func (s *Server) SetRule(ctx context.Context, r call.DispatchRule) error {
	s.lineMu.Lock()
	defer s.lineMu.Unlock()
	if r.ID == "" {
		return fmt.Errorf("a rule needs an id: %w", call.ErrInvalid)
	}
	old := s.lines.Load()
	if old.isConfigRule(r.ID) {
		return fmt.Errorf("rule %s is in the configuration: %w", r.ID, call.ErrConflict)
	}
	if err := s.cfg.CheckRule(r); err != nil {
		return err
	}
	if s.deps.Store != nil {
		if err := s.deps.Store.PutSIPRule(ctx, r); err != nil {
			return fmt.Errorf("keep rule %s: %w", r.ID, err)
		}
	}
	api := slices.Clone(old.apiRules)
	if i := slices.IndexFunc(api, func(have call.DispatchRule) bool { return have.ID == r.ID }); i >= 0 {
		api[i] = r
	} else {
		api = append(api, r)
	}
	s.setLines((&lines{trunks: old.trunks}).withRules(s.cfg.Dispatch, api))
	return nil
}

// DeleteRule takes a rule of the API away.
func (s *Server) DeleteRule(ctx context.Context, id string) error {
	s.lineMu.Lock()
	defer s.lineMu.Unlock()
	old := s.lines.Load()
	switch {
	case old.isConfigRule(id):
		return fmt.Errorf("rule %s is in the configuration: %w", id, call.ErrConflict)
	case !slices.ContainsFunc(old.apiRules, func(r call.DispatchRule) bool { return r.ID == id }):
		return fmt.Errorf("rule %s: %w", id, call.ErrNotFound)
	}
	if s.deps.Store != nil {
		if err := s.deps.Store.DeleteSIPRule(ctx, id); err != nil {
			return fmt.Errorf("forget rule %s: %w", id, err)
		}
	}
	api := slices.DeleteFunc(slices.Clone(old.apiRules), func(r call.DispatchRule) bool { return r.ID == id })
	s.setLines((&lines{trunks: old.trunks}).withRules(s.cfg.Dispatch, api))
	return nil
}

func (l *lines) isConfigRule(id string) bool {
	isAPI := func(r call.DispatchRule) bool { return r.ID == id }
	return slices.ContainsFunc(l.rules, isAPI) && !slices.ContainsFunc(l.apiRules, isAPI)
}

// Numbers returns the numbers on which phones are asked for a PIN, for invitations.
func (s *Server) Numbers() []Number {
	var all []Number
	for _, r := range s.lines.Load().rules {
		if r.Action.Type != "pin" {
			continue
		}
		for _, to := range append([]string{r.Match.To}, r.Match.Tos...) {
			if to == "" || strings.HasSuffix(to, "*") {
				continue
			}
			n := Number{Number: to, Language: r.Action.Language}
			if !slices.ContainsFunc(all, func(have Number) bool { return have.Number == to }) {
				all = append(all, n)
			}
		}
	}
	return all
}

// A Number is one that people can dial.
type Number struct {
	Number   string `json:"number"` // E.164
	Language string `json:"language,omitempty"`
}

// Outbound reports whether there is a trunk to call over.
func (s *Server) Outbound() bool {
	return slices.ContainsFunc(s.lines.Load().trunks, func(l line) bool { return l.outbound() && len(l.Allow) > 0 })
}

// Explain goes through the dial plan for a number without calling it.
func (s *Server) Explain(typed, trunk string) numbers.Result {
	all := s.lines.Load()
	return s.plan.Route(numbers.Query{Typed: typed, Trunk: trunk, Trunks: all.queryTrunks(), Own: all.own()})
}
