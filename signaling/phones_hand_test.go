package signaling

import (
	"testing"
)

// TestPhoneRaisesHand: a phone's hand is seen as other clients' hands are, stays up
// over a renewal of the membership, and comes down.
func TestPhoneRaisesHand(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice := w.register("alice")
	room := w.room(alice, nil)
	seat, err := w.d.Seat(ctx, w.at(room), inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	defer seat.Leave(ctx)

	// hands lists the memberships to which there is a reaction that counts.
	hands := func() (to []string) {
		for _, e := range w.timeline(room, alice) {
			c, _ := e["content"].(map[string]any)
			r, _ := c["m.relates_to"].(map[string]any)
			if e["type"] == "m.reaction" && e["sender"] == string(testGhost) && r["key"] == raisedHand && r["rel_type"] == "m.annotation" {
				to = append(to, r["event_id"].(string))
			}
		}
		return to
	}
	if got := hands(); len(got) != 0 {
		t.Fatalf("a hand is up before it is raised: %q", got)
	}
	for range 2 { // raised twice it is still one hand
		if err := seat.Hand(ctx, true); err != nil {
			t.Fatal(err)
		}
	}
	p := w.d.seated()[0]
	if got := hands(); len(got) != 1 || got[0] != string(p.member) {
		t.Fatalf("hands %q, the membership is %s", got, p.member)
	}

	p.mu.Lock()
	err = p.renewLocked(ctx, p.created.Add(p.expires))
	p.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if p.member == p.event {
		t.Fatal("the membership was not renewed")
	}
	if got := hands(); len(got) != 1 || got[0] != string(p.member) {
		t.Errorf("after the renewal hands %q, the membership is %s", got, p.member)
	}
	if err := seat.Hand(ctx, false); err != nil {
		t.Fatal(err)
	}
	if got := hands(); len(got) != 0 {
		t.Errorf("hands %q after it came down", got)
	}
}
