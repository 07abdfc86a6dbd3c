// Package calls tests what a call asks of the server beside its media: heart-
// beats from many clients, and that whoever leaves the room leaves the call.
package calls

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

const (
	clients     = 50
	callFor     = time.Minute
	heartbeat   = 4 * time.Second // Element Call's
	leaveDelay  = 18 * time.Second
	memberState = "org.matrix.msc3401.call.member"
)

// An office of fifty people behind one address is in one call for a minute:
// every client restarts its delayed leave every four seconds and syncs all the
// time. Nobody may be told to slow down, and nobody may fall out of the call.
func TestHeartbeatsOfFiftyClients(t *testing.T) {
	s := harness.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	people := make([]*harness.Account, clients)
	for i := range people {
		a, err := s.Register(ctx, fmt.Sprintf("person%02d", i))
		if err != nil {
			t.Fatal(err)
		}
		people[i] = a
	}
	room, err := people[0].CreateRoom(ctx, map[string]any{
		"preset":                       "public_chat",
		"power_level_content_override": map[string]any{"events": map[string]any{memberState: 0}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range people[1:] {
		if err := a.Join(ctx, room); err != nil {
			t.Fatal(err)
		}
	}

	var restarts, syncs atomic.Int64
	call, hangUp := context.WithCancel(ctx)
	defer hangUp()
	var all sync.WaitGroup
	for i, a := range people {
		key := "_" + a.UserID + "_" + a.DeviceID + "_m.call"
		path := "/v3/rooms/" + url.PathEscape(room) + "/state/" + memberState + "/" + url.PathEscape(key)
		var delayed struct {
			ID string `json:"delay_id"`
		}
		if err := a.Do(ctx, http.MethodPut, fmt.Sprintf("%s?org.matrix.msc4140.delay=%d", path, leaveDelay.Milliseconds()), map[string]any{}, &delayed); err != nil {
			t.Fatal(err)
		}
		if err := a.Do(ctx, http.MethodPut, path, membership(s, a), nil); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			// Half of them restart without a token, as the delay ID alone allows.
			who := *a
			if i%2 == 1 {
				who.AccessToken = ""
			}
			tick := time.NewTicker(heartbeat)
			defer tick.Stop()
			for {
				began := time.Now()
				err := who.Do(call, http.MethodPost, "/unstable/org.matrix.msc4140/delayed_events/"+delayed.ID+"/restart", map[string]any{}, nil)
				if call.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("%s: %v", a.UserID, err)
					return
				}
				// Clients give up on a restart after two seconds.
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("%s: a restart took %s", a.UserID, took)
				}
				restarts.Add(1)
				select {
				case <-tick.C:
				case <-call.Done():
					return
				}
			}
		})
		all.Go(func() {
			since := ""
			for call.Err() == nil {
				var r struct {
					NextBatch string `json:"next_batch"`
				}
				err := a.Do(call, http.MethodGet, "/v3/sync?timeout=30000&since="+url.QueryEscape(since), nil, &r)
				if call.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("%s: %v", a.UserID, err)
					return
				}
				since = r.NextBatch
				syncs.Add(1)
			}
		})
	}
	// Somebody talks in the meantime, so that the syncs have something to say.
	began := time.Now()
	for n := 0; time.Since(began) < callFor && !t.Failed(); n++ {
		path := fmt.Sprintf("/v3/rooms/%s/send/m.room.message/t%d", url.PathEscape(room), n)
		if err := people[n%clients].Do(ctx, http.MethodPut, path, map[string]any{"msgtype": "m.text", "body": "still here"}, nil); err != nil {
			t.Error(err)
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
	present := inCall(ctx, t, people[0], room)
	hangUp()
	all.Wait()
	if len(present) != clients {
		t.Errorf("%d of %d are still in the call", len(present), clients)
	}
	if least := int64(clients) * int64(callFor/heartbeat) * 9 / 10; restarts.Load() < least {
		t.Errorf("%d restarts went through, want at least %d", restarts.Load(), least)
	}
	t.Logf("%d restarts, %d syncs", restarts.Load(), syncs.Load())

	// The control: without heartbeats all of them do fall out.
	deadline := time.Now().Add(leaveDelay + 30*time.Second)
	for {
		present = inCall(ctx, t, people[0], room)
		if len(present) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d people who have vanished are still in the call", len(present))
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// membership is what a call client says of itself in the room.
func membership(s *harness.Server, a *harness.Account) map[string]any {
	return map[string]any{
		"application": "m.call", "call_id": "", "scope": "m.room", "device_id": a.DeviceID,
		"membershipID": a.UserID + ":" + a.DeviceID, "expires": 14400000,
		"focus_active":   map[string]any{"type": "livekit", "focus_selection": "multi_sfu"},
		"foci_preferred": []any{map[string]any{"type": "livekit", "livekit_service_url": s.JWTService}},
	}
}

// inCall lists the state keys of those who are in the room's call.
func inCall(ctx context.Context, t *testing.T, a *harness.Account, room string) []string {
	t.Helper()
	var state []struct {
		Type     string                     `json:"type"`
		StateKey string                     `json:"state_key"`
		Content  map[string]json.RawMessage `json:"content"`
	}
	if err := a.Do(ctx, http.MethodGet, "/v3/rooms/"+url.PathEscape(room)+"/state", nil, &state); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, e := range state {
		if e.Type == memberState && e.Content["application"] != nil {
			keys = append(keys, e.StateKey)
		}
	}
	return keys
}
