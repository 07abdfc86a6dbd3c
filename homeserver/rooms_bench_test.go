package homeserver

import (
	"fmt"
	"testing"
)

// BenchmarkSend measures one message into a room that nobody is watching.
func BenchmarkSend(b *testing.B) {
	h := newHouse(b)
	alice := h.user("alice")
	room := alice.room(obj{})
	i := 0
	for b.Loop() {
		alice.say(room, "hello", fmt.Sprint(i))
		i++
	}
}

// BenchmarkSyncIdle measures a sync with nothing new, in 50 rooms.
func BenchmarkSyncIdle(b *testing.B) {
	h := newHouse(b)
	alice := h.user("alice")
	for range 50 {
		alice.room(obj{})
	}
	since := alice.sync("").next()
	for b.Loop() {
		alice.sync(since)
	}
}

// BenchmarkSyncMessage measures a sync that brings one message, in 50 rooms.
func BenchmarkSyncMessage(b *testing.B) {
	h := newHouse(b)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	bob.join(room)
	for range 50 {
		bob.room(obj{})
	}
	since := bob.sync("").next()
	i := 0
	for b.Loop() {
		b.StopTimer()
		alice.say(room, "hello", fmt.Sprint(i))
		i++
		b.StartTimer()
		since = bob.sync(since).next()
	}
}

// BenchmarkSyncInitial measures a first sync of 100 rooms with 50 pieces of
// state each.
func BenchmarkSyncInitial(b *testing.B) {
	h := newHouse(b)
	alice := h.user("alice")
	var state []obj
	for i := range 42 {
		state = append(state, obj{"type": "org.example.state", "state_key": fmt.Sprint(i), "content": obj{"n": i}})
	}
	for range 100 {
		alice.room(obj{"initial_state": state})
	}
	for b.Loop() {
		alice.sync("")
	}
}

// BenchmarkFanout measures one message and the syncs of 50 members that it wakes.
func BenchmarkFanout(b *testing.B) {
	h := newHouse(b)
	alice := h.user("alice")
	room := alice.room(obj{"preset": "public_chat"})
	users := make([]*resident, 50)
	since := make([]string, len(users))
	for i := range users {
		users[i] = h.user(fmt.Sprint("u", i))
		users[i].join(room)
	}
	for i, u := range users {
		since[i] = u.sync("").next()
	}
	n := 0
	for b.Loop() {
		alice.say(room, "hello", fmt.Sprint(n))
		n++
		for i, u := range users {
			since[i] = u.sync(since[i]).next()
		}
	}
}
