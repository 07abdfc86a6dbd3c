package homeserver

import (
	"encoding/json"

	"github.com/trunkhall/trunkhall/matrix"
)

// Actions and conditions of the default rules.
var (
	actNothing   = []json.RawMessage{}
	actNotify    = []json.RawMessage{json.RawMessage(`"notify"`)}
	actHighlight = append(actNotify[:1:1], json.RawMessage(`{"set_tweak":"highlight"}`))
	actMention   = append(actNotify[:1:1], json.RawMessage(`{"set_tweak":"sound","value":"default"}`), json.RawMessage(`{"set_tweak":"highlight"}`))
	actSound     = append(actNotify[:1:1], json.RawMessage(`{"set_tweak":"sound","value":"default"}`))
	actRing      = append(actNotify[:1:1], json.RawMessage(`{"set_tweak":"sound","value":"ring"}`))
)

// matches is an event_match condition.
func matches(key, pattern string) json.RawMessage {
	return condition(map[string]any{"kind": "event_match", "key": key, "pattern": pattern})
}

func condition(c map[string]any) json.RawMessage {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings, numbers and booleans always encode
	}
	return b
}

func defaultRule(id string, actions []json.RawMessage, conditions ...json.RawMessage) pushRule {
	return pushRule{RuleID: id, Default: true, Enabled: true, Actions: actions, Conditions: append([]json.RawMessage{}, conditions...)}
}

// defaultRules returns the predefined rules of the Matrix specification v1.19
// (client-server API, "Predefined Rules") and those of calls that are not in it
// yet. The rules that looked for names in the text of messages left the
// specification with v1.17 (MSC4210).
func defaultRules(user matrix.UserID) pushRules {
	mentionsMe := condition(map[string]any{"kind": "event_property_contains", "key": `content.m\.mentions.user_ids`, "value": user})
	mentionsRoom := condition(map[string]any{"kind": "event_property_is", "key": `content.m\.mentions.room`, "value": true})
	mayNotifyRoom := condition(map[string]any{"kind": "sender_notification_permission", "key": "room"})
	twoMembers := condition(map[string]any{"kind": "room_member_count", "is": "2"})
	isEdit := condition(map[string]any{"kind": "event_property_is", "key": `content.m\.relates_to.rel_type`, "value": "m.replace"})
	callStarted := condition(map[string]any{"kind": "call_started"})

	master := defaultRule(".m.rule.master", actNothing)
	master.Enabled = false
	return pushRules{
		Override: []pushRule{
			master,
			defaultRule(".m.rule.suppress_notices", actNothing, matches("content.msgtype", "m.notice")),
			defaultRule(".m.rule.invite_for_me", actSound, matches("type", "m.room.member"), matches("content.membership", "invite"), matches("state_key", string(user))),
			defaultRule(".m.rule.member_event", actNothing, matches("type", "m.room.member")),
			// MSC4075: invitations to MatrixRTC sessions ring.
			defaultRule(".org.matrix.msc4075.rule.rtc.invite_for_me", actRing, matches("type", "org.matrix.msc4075.rtc.invite"), mentionsMe),
			defaultRule(".m.rule.is_user_mention", actMention, mentionsMe),
			defaultRule(".org.matrix.msc4075.rule.rtc.invite_for_room", actRing, matches("type", "org.matrix.msc4075.rtc.invite"), mentionsRoom, mayNotifyRoom),
			defaultRule(".m.rule.is_room_mention", actHighlight, mentionsRoom, mayNotifyRoom),
			defaultRule(".m.rule.tombstone", actHighlight, matches("type", "m.room.tombstone"), matches("state_key", "")),
			defaultRule(".m.rule.reaction", actNothing, matches("type", "m.reaction")),
			defaultRule(".m.rule.room.server_acl", actNothing, matches("type", "m.room.server_acl"), matches("state_key", "")),
			defaultRule(".m.rule.suppress_edits", actNothing, isEdit),
		},
		Content: []pushRule{},
		Room:    []pushRule{},
		Sender:  []pushRule{},
		Underride: []pushRule{
			defaultRule(".m.rule.call", actRing, matches("type", "m.call.invite")),
			// MSC3914, and the event that clients of today ring with (the name that
			// MSC4075's invitation had before).
			defaultRule(".org.matrix.msc3914.rule.room.call", actSound, matches("type", "org.matrix.msc3401.call"), callStarted),
			defaultRule(".org.matrix.msc4075.rule.rtc.notification", actRing, matches("type", "org.matrix.msc4075.rtc.notification")),
			defaultRule(".m.rule.encrypted_room_one_to_one", actSound, twoMembers, matches("type", "m.room.encrypted")),
			defaultRule(".m.rule.room_one_to_one", actSound, twoMembers, matches("type", "m.room.message")),
			defaultRule(".m.rule.message", actNotify, matches("type", "m.room.message")),
			defaultRule(".m.rule.encrypted", actNotify, matches("type", "m.room.encrypted")),
		},
	}
}
