package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// A pushRule is one push rule as clients see it (client-server API, "Push Rules").
type pushRule struct {
	RuleID     string            `json:"rule_id"`
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Actions    []json.RawMessage `json:"actions"`
	Conditions []json.RawMessage `json:"conditions,omitzero"` // override and underride rules only
	Pattern    *string           `json:"pattern,omitempty"`   // content rules only

	match []pushCondition // Conditions and Pattern, ready to evaluate; set by compile
}

// A pushRules are the rules of a user by kind, each kind in order of priority.
type pushRules struct {
	Override  []pushRule `json:"override"`
	Content   []pushRule `json:"content"`
	Room      []pushRule `json:"room"`
	Sender    []pushRule `json:"sender"`
	Underride []pushRule `json:"underride"`
}

// kind returns the list of a kind, nil if there is no such kind.
func (p *pushRules) kind(name string) *[]pushRule {
	switch name {
	case "override":
		return &p.Override
	case "content":
		return &p.Content
	case "room":
		return &p.Room
	case "sender":
		return &p.Sender
	case "underride":
		return &p.Underride
	}
	return nil
}

// pushKinds lists the kinds in the order in which they are evaluated.
var pushKinds = []string{"override", "content", "room", "sender", "underride"}

// A pushRuleset is what a user's rules say, ready to be evaluated. Read only.
type pushRuleset struct {
	user  matrix.UserID
	rules pushRules
}

// MarshalJSON writes the rules as clients see them.
func (rs pushRuleset) MarshalJSON() ([]byte, error) { return json.Marshal(rs.rules) }

// A rulesetCache keeps compiled rulesets. Safe for concurrent use.
type rulesetCache struct {
	mu  sync.Mutex
	all map[matrix.UserID]pushRuleset
	gen uint64 // grows with every drop, so that a ruleset read before it is not kept
}

const maxRulesets = 10_000 // kept compiled

func (c *rulesetCache) get(user matrix.UserID) (pushRuleset, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rs, ok := c.all[user]
	return rs, c.gen, ok
}

func (c *rulesetCache) put(rs pushRuleset, gen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gen != c.gen {
		return
	}
	if c.all == nil || len(c.all) >= maxRulesets {
		c.all = make(map[matrix.UserID]pushRuleset)
	}
	c.all[rs.user] = rs
}

func (c *rulesetCache) drop(user matrix.UserID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	delete(c.all, user)
}

// ruleset returns a user's push rules: what is stored, completed by default
// rules that are newer than the account.
func (s *Server) ruleset(ctx context.Context, user matrix.UserID) (pushRuleset, error) {
	rs, gen, ok := s.rulesets.get(user)
	if ok {
		return rs, nil
	}
	stored, err := s.deps.Store.AccountDataEvent(ctx, user, "", "m.push_rules")
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return pushRuleset{}, err
	}
	rules, err := mergeRules(stored, user)
	if err != nil {
		return pushRuleset{}, err
	}
	rs = pushRuleset{user: user, rules: rules}
	s.rulesets.put(rs, gen)
	return rs, nil
}

// mergeRules reads stored account data m.push_rules and completes it.
func mergeRules(stored json.RawMessage, user matrix.UserID) (pushRules, error) {
	var have struct {
		Global pushRules `json:"global"`
	}
	if stored != nil {
		if err := json.Unmarshal(stored, &have); err != nil {
			return pushRules{}, fmt.Errorf("stored push rules: %w", err)
		}
	}
	defaults := defaultRules(user)
	for _, kind := range pushKinds {
		var own []pushRule
		changed := make(map[string]pushRule)
		for _, r := range *have.Global.kind(kind) {
			if r.Default {
				changed[r.RuleID] = r
			} else {
				own = append(own, r)
			}
		}
		list := defaults.kind(kind)
		for i := range *list {
			if c, ok := changed[(*list)[i].RuleID]; ok {
				(*list)[i].Enabled, (*list)[i].Actions = c.Enabled, c.Actions
			}
		}
		at := 0
		if kind == "override" {
			at = 1 // .m.rule.master stands above everything
		}
		*list = slices.Insert(*list, at, own...)
		for i := range *list {
			if err := (*list)[i].compile(kind); err != nil {
				return pushRules{}, fmt.Errorf("stored push rule: %w", err)
			}
		}
	}
	return defaults, nil
}

// pushRuleRoutes are the endpoints of push rules, pushers and notifications.
func (s *Server) pushRuleRoutes() []route {
	return []route{
		{http.MethodGet, append(v3("/pushrules/"), v3("/pushrules")...), accessGuest, limitNone, s.getPushRules},
		{http.MethodGet, append(v3("/pushrules/global/"), v3("/pushrules/global")...), accessGuest, limitNone, s.getPushRulesGlobal},
		{http.MethodGet, append(v3("/pushrules/global/{kind}"), v3("/pushrules/global/{kind}/")...), accessGuest, limitNone, s.getPushRulesKind},
		{http.MethodGet, v3("/pushrules/global/{kind}/{ruleId}"), accessGuest, limitNone, s.getPushRule},
		{http.MethodPut, v3("/pushrules/global/{kind}/{ruleId}"), accessGuest, limitNone, s.putPushRule},
		{http.MethodDelete, v3("/pushrules/global/{kind}/{ruleId}"), accessGuest, limitNone, s.deletePushRule},
		{http.MethodGet, v3("/pushrules/global/{kind}/{ruleId}/enabled"), accessGuest, limitNone, s.getPushRuleEnabled},
		{http.MethodPut, v3("/pushrules/global/{kind}/{ruleId}/enabled"), accessGuest, limitNone, s.putPushRuleEnabled},
		{http.MethodGet, v3("/pushrules/global/{kind}/{ruleId}/actions"), accessGuest, limitNone, s.getPushRuleActions},
		{http.MethodPut, v3("/pushrules/global/{kind}/{ruleId}/actions"), accessGuest, limitNone, s.putPushRuleActions},
	}
}

func (s *Server) getPushRules(r *request) (any, error) {
	rs, err := s.ruleset(r.Context(), r.user)
	return map[string]any{"global": rs}, err
}

func (s *Server) getPushRulesGlobal(r *request) (any, error) {
	return s.ruleset(r.Context(), r.user)
}

func (s *Server) getPushRulesKind(r *request) (any, error) {
	rs, err := s.ruleset(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	list := rs.rules.kind(r.PathValue("kind"))
	if list == nil {
		return nil, invalidParam("no such kind of push rule")
	}
	return *list, nil
}

// findRule returns the rule in the path.
func (s *Server) findRule(r *request) (pushRule, error) {
	rs, err := s.ruleset(r.Context(), r.user)
	if err != nil {
		return pushRule{}, err
	}
	list, i, err := ruleAt(&rs.rules, r)
	if err != nil {
		return pushRule{}, err
	}
	return (*list)[i], nil
}

// ruleAt finds the rule in the path in rules.
func ruleAt(rules *pushRules, r *request) (*[]pushRule, int, error) {
	list := rules.kind(r.PathValue("kind"))
	if list == nil {
		return nil, 0, invalidParam("no such kind of push rule")
	}
	i := indexRule(*list, r.PathValue("ruleId"))
	if i < 0 {
		return nil, 0, notFound("no such push rule")
	}
	return list, i, nil
}

func indexRule(list []pushRule, id string) int {
	return slices.IndexFunc(list, func(p pushRule) bool { return p.RuleID == id })
}

func (s *Server) getPushRule(r *request) (any, error) {
	return s.findRule(r)
}

func (s *Server) getPushRuleEnabled(r *request) (any, error) {
	rule, err := s.findRule(r)
	return map[string]any{"enabled": rule.Enabled}, err
}

func (s *Server) getPushRuleActions(r *request) (any, error) {
	rule, err := s.findRule(r)
	return map[string]any{"actions": rule.Actions}, err
}

// changeRules changes the caller's rules in one transaction.
func (s *Server) changeRules(r *request, change func(*pushRules) error) (any, error) {
	err := s.deps.Store.UpdateAccountData(r.Context(), r.user, "", "m.push_rules", func(old json.RawMessage) (json.RawMessage, error) {
		rules, err := mergeRules(old, r.user)
		if err != nil {
			return nil, err
		}
		if err := change(&rules); err != nil {
			return nil, err
		}
		return json.Marshal(map[string]any{"global": rules})
	})
	if err != nil {
		return nil, err
	}
	s.rulesets.drop(r.user)
	s.notify.wake(r.user)
	return nil, nil
}

func (s *Server) putPushRuleEnabled(r *request) (any, error) {
	var body struct {
		Enabled *bool `json:"enabled"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.Enabled == nil {
		return nil, missingParam("enabled is needed")
	}
	return s.changeRules(r, func(p *pushRules) error {
		list, i, err := ruleAt(p, r)
		if err == nil {
			(*list)[i].Enabled = *body.Enabled
		}
		return err
	})
}

func (s *Server) putPushRuleActions(r *request) (any, error) {
	var body struct {
		Actions []json.RawMessage `json:"actions"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if err := checkActions(body.Actions); err != nil {
		return nil, err
	}
	return s.changeRules(r, func(p *pushRules) error {
		list, i, err := ruleAt(p, r)
		if err == nil {
			(*list)[i].Actions = body.Actions
		}
		return err
	})
}

// checkActions checks the actions of a rule: strings, or objects with a tweak.
func checkActions(actions []json.RawMessage) error {
	if actions == nil {
		return missingParam("actions is needed")
	}
	for _, a := range actions {
		var name string
		var tweak struct {
			SetTweak *string `json:"set_tweak"`
		}
		if json.Unmarshal(a, &name) == nil {
			if !slices.Contains([]string{"notify", "dont_notify", "coalesce"}, name) {
				return invalidParam("no such action: %q", name)
			}
			continue
		}
		if json.Unmarshal(a, &tweak) != nil || tweak.SetTweak == nil {
			return invalidParam("an action must be a string or an object with set_tweak")
		}
	}
	return nil
}

// putPushRule is PUT /pushrules/global/{kind}/{ruleId}.
func (s *Server) putPushRule(r *request) (any, error) {
	kind, id := r.PathValue("kind"), r.PathValue("ruleId")
	if (&pushRules{}).kind(kind) == nil {
		return nil, invalidParam("no such kind of push rule")
	}
	if strings.HasPrefix(id, ".") || strings.ContainsAny(id, "/\\") || len(id) > 255 {
		return nil, invalidParam("a rule ID must not begin with a dot or contain slashes")
	}
	var body struct {
		Actions    []json.RawMessage `json:"actions"`
		Conditions []json.RawMessage `json:"conditions"`
		Pattern    *string           `json:"pattern"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if err := checkActions(body.Actions); err != nil {
		return nil, err
	}
	rule := pushRule{RuleID: id, Enabled: true, Actions: body.Actions}
	switch kind {
	case "content":
		if body.Pattern == nil || *body.Pattern == "" {
			return nil, missingParam("pattern is needed")
		}
		rule.Pattern = body.Pattern
	case "override", "underride":
		rule.Conditions = append([]json.RawMessage{}, body.Conditions...)
	}
	if err := rule.compile(kind); err != nil {
		return nil, invalidParam("conditions: %v", err)
	}
	q := r.URL.Query()
	before, after := q.Get("before"), q.Get("after")
	return s.changeRules(r, func(p *pushRules) error { return placeRule(p.kind(kind), kind, rule, before, after) })
}

const maxPushRules = 1000 // of one kind

// placeRule puts a rule into its list: where it was, before or after another
// one of the user's, or above all of the user's.
func placeRule(list *[]pushRule, kind string, rule pushRule, before, after string) error {
	if i := indexRule(*list, rule.RuleID); i >= 0 {
		rule.Enabled = (*list)[i].Enabled
		if before == "" && after == "" {
			(*list)[i] = rule
			return nil
		}
		*list = slices.Delete(*list, i, i+1)
	}
	if len(*list) >= maxPushRules {
		return tooLarge("there are too many push rules")
	}
	at := 0
	if kind == "override" {
		at = 1
	}
	anchor := after
	if before != "" {
		anchor = before // it wins if both are given
	}
	if anchor != "" {
		i := indexRule(*list, anchor)
		if i < 0 {
			return notFound("no push rule %s to stand beside", anchor)
		}
		if (*list)[i].Default {
			return invalidParam("a rule cannot stand beside a default rule")
		}
		if at = i; before == "" {
			at++
		}
	}
	*list = slices.Insert(*list, at, rule)
	return nil
}

// deletePushRule is DELETE /pushrules/global/{kind}/{ruleId}.
func (s *Server) deletePushRule(r *request) (any, error) {
	return s.changeRules(r, func(p *pushRules) error {
		list, i, err := ruleAt(p, r)
		if err != nil {
			return err
		}
		if (*list)[i].Default {
			return invalidParam("a default rule can be disabled, not deleted")
		}
		*list = slices.Delete(*list, i, i+1)
		return nil
	})
}
