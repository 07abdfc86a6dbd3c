package signaling

import (
	"context"
	"maps"
	"slices"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
)

// The actions of dispatch rules that LiveKit has words for.
const (
	actionRoom       = "room"
	actionIndividual = "individual"
	actionCallee     = "callee"
)

func (s *Server) createSIPDispatchRule(ctx context.Context, r *livekit.CreateSIPDispatchRuleRequest) (*livekit.SIPDispatchRuleInfo, error) {
	r.GetDispatchRule().Upgrade()
	if err := r.Validate(); err != nil {
		return nil, invalid("%s", err)
	}
	//nolint:staticcheck // it lies outside the rule, for old clients, but is not copied into it
	if e := r.GetDispatchRule() == nil && r.GetRoomPreset() != ""; e {
		return nil, refuseFields(field{"room_preset", true, "there are no presets"})
	}
	rule := call.DispatchRule{ID: newSIPID(sipRulePrefix)}
	return s.saveRule(ctx, rule, r.DispatchRuleInfo())
}

func (s *Server) updateSIPDispatchRule(ctx context.Context, r *livekit.UpdateSIPDispatchRuleRequest) (*livekit.SIPDispatchRuleInfo, error) {
	r.GetReplace().Upgrade()
	if err := r.Validate(); err != nil {
		return nil, invalid("%s", err)
	}
	rule, err := s.ruleFor(r.GetSipDispatchRuleId())
	if err != nil {
		return nil, err
	}
	action, ok := r.GetAction().(livekit.UpdateSIPDispatchRuleRequestAction)
	if !ok {
		return nil, invalid("missing or unsupported update action")
	}
	info, err := action.Apply(ruleInfo(rule))
	if err != nil {
		return nil, invalid("%s", err)
	}
	return s.saveRule(ctx, rule, info)
}

func (s *Server) listSIPDispatchRule(_ context.Context, r *livekit.ListSIPDispatchRuleRequest) (*livekit.ListSIPDispatchRuleResponse, error) {
	var all []*livekit.SIPDispatchRuleInfo
	for _, rule := range s.phones.Rules() {
		all = append(all, ruleInfo(rule))
	}
	return &livekit.ListSIPDispatchRuleResponse{Items: paged(r.GetPage(), r.FilterSlice(all))}, nil
}

func (s *Server) deleteSIPDispatchRule(ctx context.Context, r *livekit.DeleteSIPDispatchRuleRequest) (*livekit.SIPDispatchRuleInfo, error) {
	rule, err := s.ruleFor(r.GetSipDispatchRuleId())
	if err != nil {
		return nil, err
	}
	if err := s.phones.DeleteRule(ctx, rule.ID); err != nil {
		return nil, gatewayError(err)
	}
	return ruleInfo(rule), nil
}

func (s *Server) ruleFor(id string) (call.DispatchRule, error) {
	if id == "" {
		return call.DispatchRule{}, invalid("dispatch rule ID is required")
	}
	for _, rule := range s.phones.Rules() {
		if rule.ID == id {
			return rule, nil
		}
	}
	return call.DispatchRule{}, &twirpError{code: twirpNotFound, text: "requested sip dispatch rule does not exist"}
}

// saveRule makes rule what info says, if no other rule is for the same calls.
func (s *Server) saveRule(ctx context.Context, rule call.DispatchRule, info *livekit.SIPDispatchRuleInfo) (*livekit.SIPDispatchRuleInfo, error) {
	if err := readRule(&rule, info); err != nil {
		return nil, err
	}
	for _, other := range s.phones.Rules() {
		if other.ID != rule.ID && sameCalls(rule, other) {
			return nil, invalid("Dispatch rule for the same trunk, inbound number, number, and PIN combination already exists in dispatch rule %q %q", other.ID, other.Name)
		}
	}
	for _, id := range rule.Match.Trunks {
		if _, err := s.trunkFor(id, inbound); err != nil {
			return nil, invalid("trunk_ids: %s is no trunk for inbound calls", id)
		}
	}
	if err := s.phones.SetRule(ctx, rule); err != nil {
		return nil, gatewayError(err)
	}
	return ruleInfo(rule), nil
}

// sameCalls reports whether two rules claim the same calls, so that one of them
// could never be reached. As in LiveKit a rule without trunks or numbers collides
// only with others without: the more specific one goes first. Rules with
// different PINs are told apart by what the caller enters.
func sameCalls(a, b call.DispatchRule) bool {
	return a.Action.PIN == b.Action.PIN &&
		overlap(either(a.Match.Trunks, a.Match.Trunk), either(b.Match.Trunks, b.Match.Trunk), func(id string) string { return id }) &&
		overlap(either(a.Match.Tos, a.Match.To), either(b.Match.Tos, b.Match.To), livekit.NormalizeNumber) &&
		overlap(either(a.Match.Froms, a.Match.From), either(b.Match.Froms, b.Match.From), livekit.NormalizeNumber)
}

// either returns all values that a field and its plural have.
func either(many []string, one string) []string {
	if one == "" {
		return many
	}
	return append(slices.Clone(many), one)
}

func overlap(a, b []string, normal func(string) string) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	for _, x := range a {
		for _, y := range b {
			if normal(x) == normal(y) {
				return true
			}
		}
	}
	return false
}

// readRule overwrites in rule what info says.
func readRule(rule *call.DispatchRule, info *livekit.SIPDispatchRuleInfo) error {
	media := info.GetMedia()
	if err := refuseFields(
		field{"room_preset", info.GetRoomPreset() != "", "there are no presets"},
		field{"room_config", info.GetRoomConfig() != nil && proto.Size(info.GetRoomConfig()) > 0, "make the room with CreateRoom"},
		field{"krisp_enabled", info.GetKrispEnabled(), "there is no noise cancellation"},
		field{"media", media != nil && proto.Size(media) > 0, "set it at the trunk"},
	); err != nil {
		return err
	}
	was := rule.Action
	switch r := info.GetRule().GetRule().(type) {
	case *livekit.SIPDispatchRule_DispatchRuleDirect:
		d := r.DispatchRuleDirect
		if d.GetRoomName() == "" {
			return invalid("room_name: needed")
		}
		rule.Action = call.DispatchAction{Type: actionRoom, Room: d.GetRoomName(), PIN: d.GetPin()}
	case *livekit.SIPDispatchRule_DispatchRuleIndividual:
		d := r.DispatchRuleIndividual
		rule.Action = call.DispatchAction{Type: actionIndividual, Room: d.GetRoomPrefix(), PIN: d.GetPin(), Randomize: !d.GetNoRandomness()}
	case *livekit.SIPDispatchRule_DispatchRuleCallee:
		d := r.DispatchRuleCallee
		rule.Action = call.DispatchAction{Type: actionCallee, Room: d.GetRoomPrefix(), PIN: d.GetPin(), Randomize: d.GetRandomize()}
	default:
		return invalid("rule: one of dispatch_rule_direct, dispatch_rule_individual and dispatch_rule_callee is needed")
	}
	for _, c := range rule.Action.PIN {
		if c < '0' || c > '9' {
			return invalid("pin: digits only, a telephone has no others")
		}
	}
	// What LiveKit has no word for stays.
	rule.Action.Language, rule.Action.Attempts, rule.Action.Lockout = was.Language, was.Attempts, was.Lockout
	rule.Action.HideNumber = info.GetHidePhoneNumber()
	rule.Action.Metadata = info.GetMetadata()
	rule.Action.Attrs = maps.Clone(info.GetAttributes())
	rule.Name = info.GetName()
	rule.Match = call.DispatchMatch{
		Trunks: slices.Clone(info.GetTrunkIds()),
		Tos:    slices.Clone(info.GetNumbers()),
		Froms:  slices.Clone(info.GetInboundNumbers()),
	}
	return nil
}

// ruleInfo tells a rule in LiveKit's words. Rules of the configuration may do
// what there is no word for, such as ringing a user: they are shown without it.
func ruleInfo(rule call.DispatchRule) *livekit.SIPDispatchRuleInfo {
	info := &livekit.SIPDispatchRuleInfo{
		SipDispatchRuleId: rule.ID,
		Name:              rule.Name,
		Metadata:          rule.Action.Metadata,
		Attributes:        rule.Action.Attrs,
		HidePhoneNumber:   rule.Action.HideNumber,
		TrunkIds:          either(rule.Match.Trunks, rule.Match.Trunk),
		Numbers:           either(rule.Match.Tos, rule.Match.To),
		InboundNumbers:    either(rule.Match.Froms, rule.Match.From),
	}
	a := rule.Action
	switch a.Type {
	case actionRoom:
		info.Rule = &livekit.SIPDispatchRule{Rule: &livekit.SIPDispatchRule_DispatchRuleDirect{
			DispatchRuleDirect: &livekit.SIPDispatchRuleDirect{RoomName: a.Room, Pin: a.PIN},
		}}
	case actionIndividual:
		info.Rule = &livekit.SIPDispatchRule{Rule: &livekit.SIPDispatchRule_DispatchRuleIndividual{
			DispatchRuleIndividual: &livekit.SIPDispatchRuleIndividual{RoomPrefix: a.Room, Pin: a.PIN, NoRandomness: !a.Randomize},
		}}
	case actionCallee:
		info.Rule = &livekit.SIPDispatchRule{Rule: &livekit.SIPDispatchRule_DispatchRuleCallee{
			DispatchRuleCallee: &livekit.SIPDispatchRuleCallee{RoomPrefix: a.Room, Pin: a.PIN, Randomize: a.Randomize},
		}}
	}
	return info
}
