package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// A syncFilter says what of a sync a client wants (client-server API,
// "Filtering"). The zero value wants everything.
type syncFilter struct {
	AccountData eventFilter `json:"account_data"`
	Presence    eventFilter `json:"presence"`
	Room        struct {
		Rooms        []matrix.RoomID `json:"rooms"`
		NotRooms     []matrix.RoomID `json:"not_rooms"`
		IncludeLeave bool            `json:"include_leave"`
		AccountData  eventFilter     `json:"account_data"`
		Ephemeral    eventFilter     `json:"ephemeral"`
		State        eventFilter     `json:"state"`
		Timeline     eventFilter     `json:"timeline"`
	} `json:"room"`
}

// An eventFilter chooses events.
type eventFilter struct {
	Limit                   *int            `json:"limit"`
	Types                   []string        `json:"types"`
	NotTypes                []string        `json:"not_types"`
	Senders                 []matrix.UserID `json:"senders"`
	NotSenders              []matrix.UserID `json:"not_senders"`
	Rooms                   []matrix.RoomID `json:"rooms"`
	NotRooms                []matrix.RoomID `json:"not_rooms"`
	ContainsURL             *bool           `json:"contains_url"`
	LazyLoadMembers         bool            `json:"lazy_load_members"`
	IncludeRedundantMembers bool            `json:"include_redundant_members"`
	RelatedByRelTypes       []string        `json:"related_by_rel_types"`
	RelTypes                []string        `json:"org.matrix.msc3874.rel_types"`
	NotRelTypes             []string        `json:"org.matrix.msc3874.not_rel_types"`
}

// check refuses what can never match: IDs that are none.
func (f *eventFilter) check() error {
	for _, l := range [][]matrix.UserID{f.Senders, f.NotSenders} {
		for _, u := range l {
			if !strings.HasPrefix(string(u), "@") || u.Server() == "" {
				return badJSON("filter: %.80q is not a user ID", u)
			}
		}
	}
	return errors.Join(checkRoomIDs(f.Rooms), checkRoomIDs(f.NotRooms))
}

func checkRoomIDs(rooms []matrix.RoomID) error {
	for _, r := range rooms {
		if len(r) < 2 || r[0] != '!' {
			return badJSON("filter: %.80q is not a room ID", r)
		}
	}
	return nil
}

// check refuses a filter that its client cannot have meant.
func (f *syncFilter) check() error {
	errs := []error{checkRoomIDs(f.Room.Rooms), checkRoomIDs(f.Room.NotRooms)}
	for _, e := range []*eventFilter{&f.AccountData, &f.Presence, &f.Room.AccountData, &f.Room.Ephemeral, &f.Room.State, &f.Room.Timeline} {
		errs = append(errs, e.check())
	}
	return errors.Join(errs...)
}

// everything reports whether the filter lets all events of a room through.
func (f *eventFilter) everything() bool {
	return f.Types == nil && len(f.NotTypes) == 0 && f.Senders == nil && len(f.NotSenders) == 0 && f.ContainsURL == nil &&
		f.Rooms == nil && len(f.NotRooms) == 0 && f.RelTypes == nil && len(f.NotRelTypes) == 0
}

// matchType reports whether a type matches one of the patterns; "*" stands for
// any text.
func matchType(patterns []string, typ string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return glob(p, typ) })
}

// glob matches a pattern with any number of "*".
func glob(pattern, text string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, head)
	if !ok {
		return false
	}
	for {
		part, more, again := strings.Cut(rest, "*")
		if !again {
			return strings.HasSuffix(text, part)
		}
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text, rest = text[i+len(part):], more
	}
}

// allowsType decides by the type alone.
func (f *eventFilter) allowsType(typ string) bool {
	return (f.Types == nil || matchType(f.Types, typ)) && !matchType(f.NotTypes, typ)
}

// allowsRoom decides by the room alone.
func (f *eventFilter) allowsRoom(room matrix.RoomID) bool {
	return (f.Rooms == nil || slices.Contains(f.Rooms, room)) && !slices.Contains(f.NotRooms, room)
}

// allows decides about an event of a room.
func (f *eventFilter) allows(e *matrix.StoredEvent) bool {
	if !f.allowsType(e.Type) || !f.allowsRoom(e.RoomID) ||
		(f.Senders != nil && !slices.Contains(f.Senders, e.Sender)) || slices.Contains(f.NotSenders, e.Sender) {
		return false
	}
	if f.ContainsURL != nil && (e.ContentString("url") != "") != *f.ContainsURL {
		return false
	}
	if f.RelTypes != nil || len(f.NotRelTypes) > 0 {
		_, rel, _ := e.RelatesTo()
		if (f.RelTypes != nil && !slices.Contains(f.RelTypes, rel)) || slices.Contains(f.NotRelTypes, rel) {
			return false
		}
	}
	return true
}

// limit returns how many events are wanted.
func (f *eventFilter) limit(standard, most int) int {
	if f.Limit == nil {
		return standard
	}
	return min(max(*f.Limit, 0), most)
}

// syncFilter returns the filter of ?filter=, which is JSON or the ID of a stored
// one.
func (s *Server) syncFilter(ctx context.Context, user matrix.UserID, param string) (syncFilter, error) {
	var f syncFilter
	if param == "" {
		return f, nil
	}
	raw := json.RawMessage(param)
	if strings.HasPrefix(param, "{") {
		if err := checkObject(raw); err != nil {
			return f, invalidParam("filter: %v", errorReply(err).Message)
		}
	} else {
		var err error
		raw, err = s.deps.Store.Filter(ctx, user, param)
		if errors.Is(err, call.ErrNotFound) {
			return f, invalidParam("filter: there is no filter %.40q", param)
		}
		if err != nil {
			return f, err
		}
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, invalidParam("filter: %v", err)
	}
	return f, nil
}

// eventFilterParam reads ?filter= of /messages and /context.
func (r *request) eventFilterParam() (eventFilter, error) {
	var f eventFilter
	param := r.URL.Query().Get("filter")
	if param == "" {
		return f, nil
	}
	if err := checkObject([]byte(param)); err != nil {
		return f, invalidParam("filter: %v", errorReply(err).Message)
	}
	if err := json.Unmarshal([]byte(param), &f); err != nil {
		return f, invalidParam("filter: %v", err)
	}
	return f, nil
}
