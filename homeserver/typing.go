package homeserver

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// maxTyping is how long somebody types without saying so again.
const maxTyping = 120 * time.Second

// typists knows who is typing where. It lives in memory: after a restart nobody
// types. Each change has a serial, by which syncs see what is new to them; it
// starts at a random place, so that tokens from before a restart are not
// mistaken for newer ones.
type typists struct {
	mu     sync.Mutex // guards the following fields
	serial int64
	rooms  map[matrix.RoomID]*typingRoom
	wake   chan struct{} // capacity 1: there is an earlier end than thought
}

type typingRoom struct {
	serial int64 // of the last change
	until  map[matrix.UserID]time.Time
}

func (t *typists) init() {
	t.rooms = make(map[matrix.RoomID]*typingRoom)
	t.wake = make(chan struct{}, 1)
	t.serial = time.Now().Unix() % (1 << 31) * 1000
}

// set notes that a user types until a time, or not (zero time); changed is false
// if others see no difference.
func (t *typists) set(room matrix.RoomID, user matrix.UserID, until time.Time) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[room]
	if r == nil {
		if until.IsZero() {
			return false
		}
		r = &typingRoom{until: make(map[matrix.UserID]time.Time)}
		t.rooms[room] = r
	}
	_, was := r.until[user]
	if until.IsZero() {
		delete(r.until, user)
	} else {
		r.until[user] = until
	}
	if was == !until.IsZero() {
		return false
	}
	t.serial++
	r.serial = t.serial
	return true
}

// now returns the newest serial.
func (t *typists) now() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.serial
}

// in returns who types in a room and whether that changed after a serial.
func (t *typists) in(room matrix.RoomID, since int64) (users []matrix.UserID, changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[room]
	if r == nil {
		return nil, false
	}
	users = make([]matrix.UserID, 0, len(r.until))
	for u := range r.until {
		users = append(users, u)
	}
	slices.Sort(users)
	// A serial from the future is of an earlier run: that client knows nothing.
	return users, r.serial > since || (since > t.serial && len(users) > 0)
}

// expire ends what is over and returns the rooms that changed and when to come
// back.
func (t *typists) expire(now time.Time) (rooms []matrix.RoomID, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait = maxTyping
	for id, r := range t.rooms {
		before := len(r.until)
		for u, until := range r.until {
			if left := until.Sub(now); left > 0 {
				wait = min(wait, left)
			} else {
				delete(r.until, u)
			}
		}
		if len(r.until) != before {
			t.serial++
			r.serial = t.serial
			rooms = append(rooms, id)
		}
	}
	return rooms, wait
}

// runTyping ends typing that nobody ended.
func (s *Server) runTyping(ctx context.Context) {
	timer := time.NewTimer(maxTyping)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.typing.wake:
		case <-ctx.Done():
			return
		}
		rooms, wait := s.typing.expire(time.Now())
		for _, room := range rooms {
			s.wakeRoom(ctx, room)
		}
		timer.Reset(wait)
	}
}

// wakeRoom wakes the joined members of a room.
func (s *Server) wakeRoom(ctx context.Context, room matrix.RoomID) {
	v := s.view(room)
	v.mu.Lock()
	err := s.load(ctx, v, room)
	var users []matrix.UserID
	if err == nil {
		users, err = s.joinedMembers(ctx, v)
	}
	v.mu.Unlock()
	if err != nil {
		s.log.Error("wake members", "room", room, "error", err)
		return
	}
	s.notify.wake(users...)
}

// putTyping says whether the caller types.
func (s *Server) putTyping(r *request) (any, error) {
	user, err := r.self()
	if err != nil {
		return nil, err
	}
	var body struct {
		Typing  bool  `json:"typing"`
		Timeout int64 `json:"timeout"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if err := s.requireJoined(r.Context(), r.room(), user); err != nil {
		return nil, err
	}
	var until time.Time
	if body.Typing {
		d := time.Duration(min(max(body.Timeout, 0), maxTyping.Milliseconds())) * time.Millisecond
		if body.Timeout == 0 {
			d = 30 * time.Second
		}
		until = time.Now().Add(d)
	}
	if s.typing.set(r.room(), user, until) {
		s.wakeRoom(r.Context(), r.room())
	}
	if body.Typing {
		select {
		case s.typing.wake <- struct{}{}:
		default: // it will look anyway
		}
	}
	return nil, nil
}
