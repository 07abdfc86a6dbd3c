package homeserver

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestDefaultPushRules(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	ids := func(kind string) string {
		var l []string
		list, _ := dig(w.must("GET", c("/pushrules/"), alice.token, nil).body, "global", kind).([]any)
		for _, r := range list {
			l = append(l, fmt.Sprint(dig(r, "rule_id")))
		}
		return strings.Join(l, " ")
	}
	want := ".m.rule.master .m.rule.suppress_notices .m.rule.invite_for_me .m.rule.member_event .org.matrix.msc4075.rule.rtc.invite_for_me .m.rule.is_user_mention .org.matrix.msc4075.rule.rtc.invite_for_room .m.rule.is_room_mention .m.rule.tombstone .m.rule.reaction .m.rule.room.server_acl .m.rule.suppress_edits"
	if got := ids("override"); got != want {
		t.Errorf("override: %s", got)
	}
	want = ".m.rule.call .org.matrix.msc3914.rule.room.call .org.matrix.msc4075.rule.rtc.notification .m.rule.encrypted_room_one_to_one .m.rule.room_one_to_one .m.rule.message .m.rule.encrypted"
	if got := ids("underride"); got != want {
		t.Errorf("underride: %s", got)
	}
	for _, kind := range []string{"content", "room", "sender"} {
		if got := w.must("GET", c("/pushrules/global/"), alice.token, nil); dig(got.body, kind) == nil {
			t.Errorf("%s is missing, which clients do not expect: %s", kind, got.raw)
		}
	}
	got := w.must("GET", c("/pushrules/global/override/.m.rule.master"), alice.token, nil)
	if got.body["enabled"] != false || got.body["default"] != true || got.body["conditions"] == nil {
		t.Errorf("master: %s", got.raw)
	}
}

func TestPushRuleVerbs(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	rules := c("/pushrules/global/")
	notify := map[string]any{"actions": []any{"notify"}}
	order := func(kind string) string {
		var list []struct {
			RuleID string `json:"rule_id"`
		}
		if err := json.Unmarshal(w.must("GET", rules+kind+"/", alice.token, nil).raw, &list); err != nil {
			t.Fatal(err)
		}
		var own []string
		for _, r := range list {
			if !strings.HasPrefix(r.RuleID, ".") {
				own = append(own, r.RuleID)
			}
		}
		return strings.Join(own, " ")
	}
	w.must("PUT", rules+"override/one", alice.token, map[string]any{"actions": []any{}, "conditions": []any{map[string]any{"kind": "event_match", "key": "type", "pattern": "m.*"}}})
	w.must("PUT", rules+"override/two", alice.token, notify)
	w.must("PUT", rules+"override/three?after=two", alice.token, notify)
	w.must("PUT", rules+"override/four?before=one", alice.token, notify)
	if got := order("override"); got != "two three four one" {
		t.Errorf("order: %s", got)
	}
	w.must("PUT", rules+"override/two?after=one", alice.token, notify)
	if got := order("override"); got != "three four one two" {
		t.Errorf("order after a move: %s", got)
	}
	if got := w.must("GET", rules+"override", alice.token, nil); !strings.HasPrefix(string(got.raw), `[{"rule_id":".m.rule.master"`) {
		t.Errorf("something stands above .m.rule.master: %.100s", got.raw)
	}
	w.must("PUT", rules+"override/one/enabled", alice.token, map[string]any{"enabled": false})
	w.must("PUT", rules+"override/one", alice.token, notify) // keeps its place and that it is off
	if w.must("GET", rules+"override/one/enabled", alice.token, nil).body["enabled"] != false || order("override") != "three four one two" {
		t.Error("a changed rule was switched on or moved")
	}
	w.must("PUT", rules+"underride/.m.rule.message/actions", alice.token, map[string]any{"actions": []any{map[string]any{"set_tweak": "sound", "value": "ding"}}})
	if got := w.must("GET", rules+"underride/.m.rule.message/actions", alice.token, nil); dig(got.body, "actions", 0, "value") != "ding" {
		t.Errorf("actions: %s", got.raw)
	}
	w.must("PUT", rules+"room/!r:x", alice.token, map[string]any{"actions": []any{}})
	w.must("PUT", rules+"sender/@x:y", alice.token, map[string]any{"actions": []any{}})
	w.must("PUT", rules+"content/word", alice.token, map[string]any{"actions": []any{"notify"}, "pattern": "wo*d"})
	w.must("DELETE", rules+"override/one", alice.token, nil)
	w.refuse("GET", rules+"override/one", alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("DELETE", rules+"override/one", alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("DELETE", rules+"override/.m.rule.master", alice.token, nil, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"override/.mine", alice.token, notify, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"override/a%5Cb", alice.token, notify, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"nonsense/x", alice.token, notify, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"override/x?before=nope", alice.token, notify, 404, "M_NOT_FOUND")
	w.refuse("PUT", rules+"override/x?before=.m.rule.master", alice.token, notify, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"override/x", alice.token, "{}", 400, "M_MISSING_PARAM")
	w.refuse("PUT", rules+"override/x", alice.token, map[string]any{"actions": []any{"explode"}}, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"override/x", alice.token, map[string]any{"actions": []any{}, "conditions": []any{map[string]any{"kind": "event_match"}}}, 400, "M_INVALID_PARAM")
	w.refuse("PUT", rules+"content/x", alice.token, notify, 400, "M_MISSING_PARAM")
	w.refuse("GET", rules+"override/two", bob.token, nil, 404, "M_NOT_FOUND")
	// The changes reach /sync as account data.
	all, err := w.db.GlobalAccountData(t.Context(), alice.id, 0, 1<<60)
	if err != nil || len(all) != 1 || !strings.Contains(string(all[0].Content), `"three"`) {
		t.Errorf("account data: %v %v", all, err)
	}
}

func TestPushRuleEvaluation(t *testing.T) {
	const me = "@me:x"
	own := `{"global":{"override":[
		{"rule_id":"quiet","enabled":true,"actions":[],"conditions":[{"kind":"event_match","key":"room_id","pattern":"!quiet:x"}]},
		{"rule_id":"num","enabled":true,"actions":["notify"],"conditions":[{"kind":"event_property_is","key":"content.n","value":7}]},
		{"rule_id":"null","enabled":true,"actions":["notify"],"conditions":[{"kind":"event_property_is","key":"content.gone","value":null}]},
		{"rule_id":"dots","enabled":true,"actions":["notify",{"set_tweak":"highlight","value":false}],"conditions":[{"kind":"event_match","key":"content.a\\.b","pattern":"yes"}]},
		{"rule_id":"name","enabled":true,"actions":["notify",{"set_tweak":"highlight"}],"conditions":[{"kind":"contains_display_name"}]},
		{"rule_id":"odd","enabled":true,"actions":["notify",{"set_tweak":"highlight"}],"conditions":[{"kind":"org.example.unknown"}]}],
	 "content":[{"rule_id":"cake","enabled":true,"actions":["notify",{"set_tweak":"highlight"}],"pattern":"ca?e*s"}],
	 "room":[{"rule_id":"!room:x","enabled":true,"actions":["notify"]}],
	 "sender":[{"rule_id":"@loud:x","enabled":true,"actions":["notify"]}],
	 "underride":[]}}`
	rules, err := mergeRules(json.RawMessage(own), me)
	if err != nil {
		t.Fatal(err)
	}
	rs := pushRuleset{user: me, rules: rules}
	facts := pushFacts{members: 3, displayName: "Zoë", senderPower: 0, notifyPower: func(string) int64 { return 50 }}
	admin := facts
	admin.senderPower = 100
	two := facts
	two.members = 2
	for name, row := range map[string]struct {
		event             string
		facts             pushFacts
		notify, highlight bool
	}{
		"a plain message":               {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi"}}`, facts, true, false},
		"an encrypted message":          {`{"type":"m.room.encrypted","sender":"@a:x","content":{}}`, two, true, false},
		"one's own message":             {`{"type":"m.room.message","sender":"@me:x","content":{"body":"hi"}}`, facts, false, false},
		"a notice":                      {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","msgtype":"m.notice"}}`, facts, false, false},
		"an edit":                       {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","m.relates_to":{"rel_type":"m.replace"}}}`, facts, false, false},
		"a reaction":                    {`{"type":"m.reaction","sender":"@a:x","content":{}}`, facts, false, false},
		"somebody joined":               {`{"type":"m.room.member","sender":"@a:x","state_key":"@a:x","content":{"membership":"join"}}`, facts, false, false},
		"I am invited":                  {`{"type":"m.room.member","sender":"@a:x","state_key":"@me:x","content":{"membership":"invite"}}`, facts, true, false},
		"I am mentioned":                {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","m.mentions":{"user_ids":["@b:x","@me:x"]}}}`, facts, true, true},
		"another is mentioned":          {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","m.mentions":{"user_ids":["@b:x"]}}}`, facts, true, false},
		"mentions of a wrong type":      {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","m.mentions":{"user_ids":[{"a":1},["@me:x"]]}}}`, facts, true, false},
		"the room, by nobody":           {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","m.mentions":{"room":true}}}`, facts, true, false},
		"the room, by an admin":         {`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi","m.mentions":{"room":true}}}`, admin, true, true},
		"the room is upgraded":          {`{"type":"m.room.tombstone","state_key":"","sender":"@a:x","content":{}}`, facts, true, true},
		"a legacy call rings":           {`{"type":"m.call.invite","sender":"@a:x","content":{}}`, facts, true, false},
		"a MatrixRTC call rings":        {`{"type":"org.matrix.msc4075.rtc.notification","sender":"@a:x","content":{}}`, facts, true, false},
		"an invitation to a call":       {`{"type":"org.matrix.msc4075.rtc.invite","sender":"@a:x","content":{"m.mentions":{"user_ids":["@me:x"]}}}`, facts, true, false},
		"an invitation for others":      {`{"type":"org.matrix.msc4075.rtc.invite","sender":"@a:x","content":{"m.mentions":{"user_ids":["@b:x"]}}}`, facts, false, false},
		"a group call starts":           {`{"type":"org.matrix.msc3401.call","state_key":"1","sender":"@a:x","content":{"m.intent":"x"}}`, facts, true, false},
		"a group call goes on":          {`{"type":"org.matrix.msc3401.call","state_key":"1","sender":"@a:x","content":{"m.intent":"x"},"unsigned":{"prev_content":{"m.intent":"x"}}}`, facts, false, false},
		"a group call ends":             {`{"type":"org.matrix.msc3401.call","state_key":"1","sender":"@a:x","content":{"m.intent":"x","m.terminated":"y"},"unsigned":{"prev_content":{"m.intent":"x"}}}`, facts, false, false},
		"a muted room":                  {`{"type":"m.room.message","room_id":"!quiet:x","sender":"@a:x","content":{"body":"hi","m.mentions":{"user_ids":["@me:x"]}}}`, facts, false, false},
		"a number that is right":        {`{"type":"t","sender":"@a:x","content":{"n":7}}`, facts, true, false},
		"a number as a string":          {`{"type":"t","sender":"@a:x","content":{"n":"7"}}`, facts, false, false},
		"an explicit null":              {`{"type":"t","sender":"@a:x","content":{"gone":null}}`, facts, true, false},
		"an absent null":                {`{"type":"t","sender":"@a:x","content":{}}`, facts, false, false},
		"an escaped dot":                {`{"type":"t","sender":"@a:x","content":{"a.b":"YES"}}`, facts, true, false},
		"nested where a dot is escaped": {`{"type":"t","sender":"@a:x","content":{"a":{"b":"yes"}}}`, facts, false, false},
		"my name":                       {`{"type":"t","sender":"@a:x","content":{"body":"hello ZOË!"}}`, facts, true, true},
		"my name inside a word":         {`{"type":"t","sender":"@a:x","content":{"body":"amazoë"}}`, facts, false, false},
		"a keyword":                     {`{"type":"t","sender":"@a:x","content":{"body":"more CAKES, please"}}`, facts, true, true},
		"a keyword inside a word":       {`{"type":"t","sender":"@a:x","content":{"body":"pancakes"}}`, facts, false, false},
		"a room that always notifies":   {`{"type":"t","sender":"@a:x","room_id":"!room:x","content":{}}`, facts, true, false},
		"a loud person":                 {`{"type":"t","sender":"@loud:x","content":{}}`, facts, true, false},
		"content that is no object":     {`{"type":"t","sender":"@a:x","content":7}`, facts, false, false},
	} {
		e, err := newPushEvent(json.RawMessage(row.event))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if notify, highlight := rs.evaluate(e, row.facts); notify != row.notify || highlight != row.highlight {
			t.Errorf("%s: notify %t, highlight %t", name, notify, highlight)
		}
	}
	rs.rules.Override[0].Enabled = true // .m.rule.master: peace
	e, _ := newPushEvent(json.RawMessage(`{"type":"m.room.message","sender":"@a:x","content":{"body":"hi"}}`))
	if notify, _ := rs.evaluate(e, facts); notify {
		t.Error(".m.rule.master does not silence everything")
	}
}

func TestNewDefaultRulesReachOldAccounts(t *testing.T) {
	old := `{"global":{"override":[{"rule_id":".m.rule.reaction","default":true,"enabled":false,"actions":["notify"],"conditions":[]},{"rule_id":".m.rule.gone","default":true,"enabled":true,"actions":[],"conditions":[]}]}}`
	rules, err := mergeRules(json.RawMessage(old), "@a:x")
	if err != nil {
		t.Fatal(err)
	}
	i := indexRule(rules.Override, ".m.rule.reaction")
	if i < 0 || rules.Override[i].Enabled || len(rules.Override[i].Actions) != 1 || len(rules.Override[i].Conditions) != 1 {
		t.Errorf("the user's choice is lost, or the rule's conditions are: %+v", rules.Override)
	}
	if indexRule(rules.Override, ".m.rule.suppress_edits") < 0 || indexRule(rules.Override, ".m.rule.gone") >= 0 {
		t.Error("default rules are not those of this version")
	}
}

func TestMemberCountCondition(t *testing.T) {
	for is, want := range map[string][3]bool{ // for 1, 2 and 3 members
		"2": {false, true, false}, "==2": {false, true, false}, "<2": {true, false, false}, ">2": {false, false, true},
		"<=2": {true, true, false}, ">=2": {false, true, true},
	} {
		c, err := memberCount(is)
		if err != nil {
			t.Errorf("%s: %v", is, err)
			continue
		}
		for i, w := range want {
			if got := c(pushEvent{}, pushFacts{members: i + 1}); got != w {
				t.Errorf("%s with %d members: %t", is, i+1, got)
			}
		}
	}
	for _, bad := range []string{"", "two", "=2", "=>2", "2x", "<"} {
		if _, err := memberCount(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestPushers(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	set := func(app string, more ...any) map[string]any {
		p := map[string]any{"kind": "http", "app_id": app, "pushkey": "k", "app_display_name": "App", "device_display_name": "Phone", "lang": "en", "data": map[string]any{"url": "https://push.example/_matrix/push/v1/notify"}}
		for i := 0; i+1 < len(more); i += 2 {
			p[more[i].(string)] = more[i+1]
		}
		return p
	}
	count := func(p person) int {
		l, _ := w.must("GET", c("/pushers"), p.token, nil).body["pushers"].([]any)
		return len(l)
	}
	w.must("POST", c("/pushers/set"), alice.token, set("a"))
	w.must("POST", c("/pushers/set"), alice.token, set("a")) // the same one
	w.must("POST", c("/pushers/set"), alice.token, set("b"))
	if count(alice) != 2 {
		t.Errorf("%d pushers", count(alice))
	}
	got := w.must("GET", c("/pushers"), alice.token, nil)
	if dig(got.body, "pushers", 0, "data", "url") == nil || dig(got.body, "pushers", 0, "append") != nil {
		t.Errorf("pushers: %s", got.raw)
	}
	w.must("POST", c("/pushers/set"), bob.token, set("a", "append", true))
	if count(alice) != 2 {
		t.Error("append took a pusher away from another user")
	}
	w.must("POST", c("/pushers/set"), bob.token, set("a"))
	if count(alice) != 1 || count(bob) != 1 {
		t.Error("a device that changed hands pushes to both")
	}
	w.must("POST", c("/pushers/set"), bob.token, map[string]any{"kind": nil, "app_id": "a", "pushkey": "k"})
	if count(bob) != 0 {
		t.Error("a pusher cannot be removed")
	}
	w.refuse("POST", c("/pushers/set"), bob.token, map[string]any{"kind": "http", "app_id": "a"}, 400, "M_MISSING_PARAM")
	w.refuse("POST", c("/pushers/set"), bob.token, set("a", "data", map[string]any{}), 400, "M_MISSING_PARAM")
	w.must("POST", c("/logout"), alice.token, nil)
	if l, err := w.db.Pushers(t.Context(), alice.id); err != nil || len(l) != 0 {
		t.Errorf("pushers outlive the device: %v, %v", l, err)
	}
}
