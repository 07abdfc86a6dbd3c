package homeserver

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestSyncLosesNothing lets users talk, come and go and change their names while
// others follow with long polls. Everybody who stays must see every message once
// and in order, whatever happens at the same time.
func TestSyncLosesNothing(t *testing.T) {
	h := newHouse(t)
	const speakers, listeners, messages = 3, 3, 20
	owner := h.user("owner")
	room := owner.room(obj{"preset": "public_chat"})
	var followers []*resident
	for i := range listeners {
		u := h.user(fmt.Sprint("listener", i))
		u.join(room)
		followers = append(followers, u)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var listening, talking sync.WaitGroup
	for i, u := range followers {
		filter := []string{"", `{"room":{"timeline":{"limit":2}}}`, `{"room":{"state":{"lazy_load_members":true}}}`}[i%3]
		since := u.sync("").next()
		listening.Go(func() { follow(ctx, t, u, room, since, filter, speakers*messages) })
	}
	for i := range speakers {
		u := h.user(fmt.Sprint("speaker", i))
		u.join(room)
		talking.Go(func() {
			for n := range messages {
				r := u.doCtx(ctx, "PUT", fmt.Sprintf("/v3/rooms/%s/send/m.room.message/%d", esc(room), n), obj{"body": fmt.Sprintf("%s-%d", u.id.Localpart(), n)})
				if r.status != 200 {
					t.Errorf("send: %d %s", r.status, r.raw)
				}
			}
		})
	}
	talking.Go(func() { // the listeners' own membership events move all the time
		for n := range messages {
			u := followers[n%listeners]
			if r := u.doCtx(ctx, "PUT", "/v3/profile/"+esc(string(u.id))+"/displayname", obj{"displayname": fmt.Sprint("name ", n)}); r.status != 200 {
				t.Errorf("rename: %d %s", r.status, r.raw)
			}
		}
	})
	talking.Go(func() {
		u := h.user("restless")
		for range messages / 2 {
			u.doCtx(ctx, "POST", "/v3/join/"+esc(room), obj{})
			u.doCtx(ctx, "POST", "/v3/rooms/"+esc(room)+"/leave", obj{})
		}
	})
	talking.Wait()
	listening.Wait()
}

// follow reads syncs until it has seen all messages, filling gaps as a client
// does.
func follow(ctx context.Context, t *testing.T, u *resident, room, since, filter string, total int) {
	next := make(map[string]int) // of each speaker
	got := 0
	take := func(list []string) {
		for _, b := range list {
			var who string
			var n int
			if _, err := fmt.Sscanf(b, "speaker%1s-%d", &who, &n); err != nil {
				t.Errorf("%s: %q", u.id, b)
				continue
			}
			if n != next[who] {
				t.Errorf("%s sees message %d of speaker %s, expected %d", u.id, n, who, next[who])
			}
			next[who] = n + 1
			got++
		}
	}
	for got < total && !t.Failed() {
		r := u.doCtx(ctx, "GET", "/v3/sync?timeout=30000&since="+since+"&filter="+esc(filter), nil)
		if r.status != 200 {
			t.Errorf("%s: sync: %d %s", u.id, r.status, r.raw)
			return
		}
		if r.joined(room, "timeline", "limited") == true {
			prev, _ := r.joined(room, "timeline", "prev_batch").(string)
			gap := u.doCtx(ctx, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=f&limit=1000&from="+since+"&to="+prev, nil)
			take(bodies(gap.at("chunk")))
		}
		take(bodies(r.joined(room, "timeline", "events")))
		since = r.next()
	}
}
