package phones

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// ghosts returns the telephones that are members of a room, and those that have a
// call membership there.
func ghosts(ctx context.Context, a *harness.Account, room string) (members, inCall []string, err error) {
	var state []struct {
		Type     string         `json:"type"`
		StateKey string         `json:"state_key"`
		Sender   string         `json:"sender"`
		Content  map[string]any `json:"content"`
	}
	if err := a.Do(ctx, http.MethodGet, "/v3/rooms/"+url.PathEscape(room)+"/state", nil, &state); err != nil {
		return nil, nil, err
	}
	for _, e := range state {
		switch {
		case e.Type == "m.room.member" && strings.HasPrefix(e.StateKey, "@_phone_") && (e.Content["membership"] == "join" || e.Content["membership"] == "invite"):
			members = append(members, e.StateKey)
		case e.Type == "org.matrix.msc3401.call.member" && strings.HasPrefix(e.Sender, "@_phone_") && len(e.Content) > 0:
			inCall = append(inCall, e.StateKey)
		}
	}
	return members, inCall, nil
}

// A callRecord is one as administrators see it.
type callRecord struct {
	ID      string `json:"id"`
	Answer  int64  `json:"answer"`
	End     int64  `json:"end"`
	Cause   string `json:"cause"`
	Crashed bool   `json:"crashed"`
}

// The server is killed while telephones are in the call of a Matrix room. Once it is
// back the room shows nobody who is not there, the call records have an end, the
// telephones are told that their calls are over, and new ones work.
func TestKilledWithPhones(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	const number = "+4930400001"
	g := StartGateway(t, GatewayOptions{})
	alice, err := g.Register(ctx, "chaos-alice")
	if err != nil {
		t.Fatal(err)
	}
	room, err := alice.CreateRoom(ctx, map[string]any{"preset": "private_chat", "name": "Chaos"})
	if err != nil {
		t.Fatal(err)
	}
	rule := map[string]any{"match": map[string]any{"to": number}, "action": map[string]any{"type": "room", "room": room}}
	if err := g.API(g.Admin(t), http.MethodPut, "/admin/v1/phones/rules/chaos", rule, nil); err != nil {
		t.Fatal(err)
	}
	type phone struct {
		*Raw
		*Tones
		to     netip.AddrPort
		hangUp func()
	}
	call := func(caller string) phone {
		p := phone{Raw: StartRaw(t, plainIP, g.SIP), Tones: StartTones(t, plainIP, 440)}
		q := p.Raw.invite(number, p.Tones.Addr())
		q.caller = caller
		p.to, p.hangUp = p.Raw.CallWith(t, q)
		p.Tones.Send(p.to)
		return p
	}
	var phones []phone
	for i := range 3 {
		phones = append(phones, call(fmt.Sprintf("+49305550010%d", i)))
	}
	seated := func(n int) func() error {
		return func() error {
			members, inCall, err := ghosts(ctx, alice, room)
			if err == nil && (len(members) != n || len(inCall) != n) {
				err = fmt.Errorf("members %q, in the call %q", members, inCall)
			}
			return err
		}
	}
	eventually(t, 30*time.Second, "three telephones are in the call", seated(3))
	legs := g.overview(t).Legs
	if len(legs) != 3 {
		t.Fatalf("legs: %+v", legs)
	}

	down := time.Now()
	g.Restart()
	before := make([]int, len(phones))
	for i, p := range phones {
		before[i] = p.Tones.Received()
	}
	eventually(t, 20*time.Second, "the room shows no telephone that is not there", seated(0))
	t.Logf("back and clean %s after the crash", time.Since(down).Round(10*time.Millisecond))

	if legs := g.overview(t).Legs; len(legs) > 0 {
		t.Errorf("legs after the crash: %+v", legs)
	}
	var answer struct {
		Records []callRecord `json:"records"`
	}
	if err := g.API(g.Admin(t), http.MethodGet, "/admin/v1/phones/records?limit=50", nil, &answer); err != nil {
		t.Fatal(err)
	}
	for _, l := range legs {
		i := slices.IndexFunc(answer.Records, func(r callRecord) bool { return r.ID == l.ID })
		if i < 0 {
			t.Errorf("call %s has no record", l.ID)
			continue
		}
		r := answer.Records[i]
		if !r.Crashed || r.Cause == "" || r.Answer == 0 || r.End < r.Answer || r.End > down.UnixMilli()+1000 {
			t.Errorf("record %+v, crash at %d", r, down.UnixMilli())
		}
	}

	// The telephones hear nothing any more, and learn why when they say something.
	time.Sleep(time.Second)
	for i, p := range phones {
		if n := p.Tones.Received() - before[i]; n > 0 {
			t.Errorf("telephone %d got %d packets after the crash", i, n)
		}
		p.hangUp()
		if _, ok := p.Raw.Wait(5*time.Second, "SIP/2.0 481"); !ok {
			t.Errorf("telephone %d is not told that its call is gone: %q", i, p.Raw.Got())
		}
	}
	again := call("+493055500100")
	eventually(t, 30*time.Second, "a telephone calls again", seated(1))
	again.hangUp()
	eventually(t, 30*time.Second, "it has left", seated(0))
	if strings.Contains(g.Log(), "55500100") {
		t.Error("the log has a number")
	}
}
