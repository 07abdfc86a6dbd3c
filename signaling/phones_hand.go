package signaling

import (
	"context"

	"github.com/trunkhall/trunkhall/matrix"
)

// raisedHand is the key of the reaction by which clients show a raised hand: an
// annotation of the call membership of whoever raises it. Putting the hand down is
// its redaction.
const raisedHand = "🖐️"

// hand shows in Matrix that the phone's hand is up, or down.
func (p *phoneSeat) hand(ctx context.Context, up bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left || p.event == "" || up == (p.raised != "") {
		return nil
	}
	return p.handLocked(ctx, up)
}

// handLocked is hand with mu held; it also replaces a reaction to a membership that
// has been renewed.
func (p *phoneSeat) handLocked(ctx context.Context, up bool) error {
	if old := p.raised; old != "" {
		if err := p.d.ghosts.RedactAs(ctx, p.room, p.ghost, p.device, old); err != nil {
			return err
		}
		p.raised = ""
	}
	if !up {
		return nil
	}
	var err error
	p.raised, err = p.d.ghosts.SendMessageAs(ctx, p.room, p.ghost, p.device, "m.reaction", map[string]any{
		"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": p.member, "key": raisedHand},
	})
	return err
}

// renewed notes the event of the membership that now counts.
func (p *phoneSeat) renewed(ctx context.Context, id matrix.EventID) {
	p.member = id
	if p.raised == "" {
		return
	}
	if err := p.handLocked(ctx, true); err != nil {
		p.d.log.Info("a phone's hand could not be shown again", "room_id", p.room, "err", err)
	}
}
