package homeserver

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

const (
	syncTimelineLimit    = 20
	syncTimelineLimitMax = 100
	maxSyncWait          = 60 * time.Second
	toDevicePerSync      = 100
	maxHeroes            = 5
)

// A syncRequest is what GET /sync asks for.
type syncRequest struct {
	viewer
	since      token
	initial    bool
	fullState  bool
	stateAfter string // the key under which state_after is wanted; empty: state
	filter     syncFilter
}

// A syncResponse is the body of GET /sync. Counts of keys are always there:
// clients stop uploading keys without them.
type syncResponse struct {
	NextBatch   string         `json:"next_batch"`
	Rooms       *syncRooms     `json:"rooms,omitempty"`
	AccountData *syncEvents    `json:"account_data,omitempty"`
	ToDevice    *syncEvents    `json:"to_device,omitempty"`
	Presence    *syncEvents    `json:"presence,omitempty"`
	DeviceLists *syncDevices   `json:"device_lists,omitempty"`
	KeyCounts   map[string]int `json:"device_one_time_keys_count"`
	Fallback    []string       `json:"device_unused_fallback_key_types"`
	FallbackOld []string       `json:"org.matrix.msc2732.device_unused_fallback_key_types"`
}

type syncEvents struct {
	Events []any `json:"events"`
}

type syncDevices struct {
	Changed []matrix.UserID `json:"changed"`
	Left    []matrix.UserID `json:"left"`
}

type syncRooms struct {
	Join   map[matrix.RoomID]*syncJoined    `json:"join,omitempty"`
	Invite map[matrix.RoomID]map[string]any `json:"invite,omitempty"`
	Knock  map[matrix.RoomID]map[string]any `json:"knock,omitempty"`
	Leave  map[matrix.RoomID]*syncJoined    `json:"leave,omitempty"`
}

// A syncJoined is a room that the user has joined, or had.
type syncJoined struct {
	Timeline      *syncTimeline  `json:"timeline,omitempty"`
	State         *syncEvents    `json:"state,omitempty"`
	StateAfter    *syncEvents    `json:"state_after,omitempty"`
	StateAfterOld *syncEvents    `json:"org.matrix.msc4222.state_after,omitempty"`
	Summary       map[string]any `json:"summary,omitempty"`
	Ephemeral     *syncEvents    `json:"ephemeral,omitempty"`
	AccountData   *syncEvents    `json:"account_data,omitempty"`
	Unread        map[string]int `json:"unread_notifications,omitempty"`
	Sticky        *syncEvents    `json:"msc4354_sticky,omitempty"`

	worthIt bool // has something new
	raw     rawEvents
}

// rawEvents are all events of a room in (since, upTo], newest first, before any
// filter.
type rawEvents struct {
	since    int64
	complete bool // else some are missing
	events   []matrix.StoredEvent
}

type syncTimeline struct {
	Events    []*clientEvent `json:"events"`
	Limited   bool           `json:"limited"`
	PrevBatch string         `json:"prev_batch,omitempty"`
}

// getSync answers at once if there is something new, else waits for it.
func (s *Server) getSync(r *request) (any, error) {
	req, wait, err := s.parseSync(r)
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	if req.since.toDevice > 0 && r.device != "" {
		// What the client has the token of has arrived.
		if err := s.deps.Store.AckToDevice(ctx, r.user, r.device, req.since.toDevice); err != nil {
			return nil, err
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	woken, cancel := s.notify.wait(r.user) // before the store is read, so that nothing falls between
	defer cancel()
	for {
		req.now = time.Now()
		resp, worthIt, err := s.sync(ctx, req)
		if err != nil {
			return nil, err
		}
		if worthIt || req.initial || req.fullState || wait <= 0 {
			return resp, nil
		}
		select {
		case <-woken:
		case <-timer.C:
			wait = 0
		case <-ctx.Done():
			return nil, errWritten // nobody is there to read an answer
		}
	}
}

// parseSync reads the query of GET /sync.
func (s *Server) parseSync(r *request) (syncRequest, time.Duration, error) {
	q := r.URL.Query()
	req := syncRequest{viewer: r.viewer(nil), initial: true}
	req.inSync = true
	var err error
	if text := q.Get("since"); text != "" {
		if req.since, err = parseToken(text); err != nil {
			return req, 0, err
		}
		req.initial = false
	}
	wait, _, err := millis(q.Get("timeout"), q.Get("timeout") != "", "timeout")
	if err != nil {
		return req, 0, err
	}
	for _, flag := range []struct {
		name string
		set  func()
	}{
		{"full_state", func() { req.fullState = true }},
		{"org.matrix.msc4222.use_state_after", func() { req.stateAfter = "org.matrix.msc4222.state_after" }},
		{"use_state_after", func() { req.stateAfter = "state_after" }},
	} {
		on, err := strconv.ParseBool(q.Get(flag.name))
		if err != nil && q.Get(flag.name) != "" {
			return req, 0, invalidParam("%s: %.20q is neither true nor false", flag.name, q.Get(flag.name))
		}
		if on {
			flag.set()
		}
	}
	req.filter, err = s.syncFilter(r.Context(), r.user, q.Get("filter"))
	return req, min(wait, maxSyncWait), err
}

// A syncRun is the making of one response.
type syncRun struct {
	s        *Server
	req      syncRequest
	upTo     int64
	typing   int64
	ignored  ignoredUsers
	members  []matrix.Member // the user's memberships
	heads    map[matrix.RoomID]int64
	receipts map[matrix.RoomID][]matrix.Receipt
	data     map[matrix.RoomID][]matrix.AccountData
	sticky   map[matrix.RoomID][]matrix.StoredEvent
	rooms    syncRooms
}

// sync makes a response. worthIt is false if nothing in it is new.
func (s *Server) sync(ctx context.Context, req syncRequest) (resp *syncResponse, worthIt bool, err error) {
	run := &syncRun{s: s, req: req, typing: s.typing.now()}
	if err := run.snapshot(ctx); err != nil {
		return nil, false, err
	}
	if run.upTo < req.since.pos {
		return nil, false, invalidParam("since: this token is from the future; log in again")
	}
	resp = &syncResponse{}
	next := token{pos: run.upTo, typing: run.typing}
	if next.sticky, err = run.prepare(ctx); err != nil {
		return nil, false, fmt.Errorf("sync: %w", err)
	}
	if err := run.allRooms(ctx); err != nil {
		return nil, false, fmt.Errorf("sync: %w", err)
	}
	if len(run.rooms.Join)+len(run.rooms.Invite)+len(run.rooms.Knock)+len(run.rooms.Leave) > 0 {
		resp.Rooms = &run.rooms
		worthIt = true
	}
	if resp.AccountData, err = run.accountData(ctx); err != nil {
		return nil, false, err
	}
	if resp.DeviceLists, err = run.deviceLists(ctx); err != nil {
		return nil, false, err
	}
	if req.device != "" {
		events, last, err := s.deps.Store.ToDevice(ctx, req.user, req.device, run.upTo, toDevicePerSync)
		if err != nil {
			return nil, false, err
		}
		if len(events) > 0 {
			next.toDevice = last // what comes back with the token has arrived
			resp.ToDevice = &syncEvents{Events: anys(events)}
		}
		if resp.KeyCounts, err = s.deps.Store.OneTimeKeyCounts(ctx, req.user, req.device); err != nil {
			return nil, false, err
		}
		if resp.Fallback, err = s.deps.Store.UnusedFallbackKeyTypes(ctx, req.user, req.device); err != nil {
			return nil, false, err
		}
	}
	if resp.KeyCounts == nil {
		resp.KeyCounts = map[string]int{}
	}
	if resp.Fallback == nil {
		resp.Fallback = []string{}
	}
	resp.FallbackOld = resp.Fallback
	resp.NextBatch = next.String()
	worthIt = worthIt || resp.AccountData != nil || resp.ToDevice != nil || resp.DeviceLists != nil
	return resp, worthIt, nil
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i := range list {
		out[i] = list[i]
	}
	return out
}

// snapshot reads the position up to which the response goes and the user's
// memberships as of that position. A membership that changes in between would
// belong to neither this response nor the next: then it reads again.
func (run *syncRun) snapshot(ctx context.Context) (err error) {
	st, user := run.s.deps.Store, run.req.user
	for {
		if run.upTo, err = st.Position(ctx); err != nil {
			return err
		}
		if run.members, err = st.Memberships(ctx, user); err != nil {
			return err
		}
		if !slices.ContainsFunc(run.members, func(m matrix.Member) bool { return m.Pos > run.upTo }) {
			break
		}
	}
	run.heads, err = st.RoomHeads(ctx, user)
	return err
}

// prepare reads what is read for all rooms at once. It returns up to where
// sticky events are delivered.
func (run *syncRun) prepare(ctx context.Context) (sticky int64, err error) {
	st, req := run.s.deps.Store, &run.req
	if run.ignored, err = run.s.ignored(ctx, req.user); err != nil {
		return 0, err
	}
	var joined, fresh []matrix.RoomID
	for _, m := range run.members {
		if m.Membership != matrix.MembershipJoin || !run.wants(m.Room) {
			continue
		}
		joined = append(joined, m.Room)
		if !req.initial && m.Pos > req.since.pos {
			fresh = append(fresh, m.Room)
		}
	}
	run.receipts = make(map[matrix.RoomID][]matrix.Receipt)
	receipts, err := st.ReceiptChanges(ctx, joined, req.since.pos, run.upTo)
	if err == nil && !req.initial && len(fresh) > 0 {
		var all []matrix.Receipt
		all, err = st.ReceiptChanges(ctx, fresh, 0, run.upTo)
		receipts = append(slices.DeleteFunc(receipts, func(c matrix.Receipt) bool { return slices.Contains(fresh, c.Room) }), all...)
	}
	if err != nil {
		return 0, err
	}
	for _, c := range receipts {
		run.receipts[c.Room] = append(run.receipts[c.Room], c)
	}
	if run.data, err = st.RoomAccountData(ctx, req.user, req.since.pos, run.upTo); err != nil {
		return 0, err
	}
	return run.prepareSticky(ctx, joined, fresh)
}

// prepareSticky reads the sticky events that are new to the client: those since
// its token, and all of the rooms that it has just joined (MSC4354).
func (run *syncRun) prepareSticky(ctx context.Context, joined, fresh []matrix.RoomID) (upTo int64, err error) {
	st, req := run.s.deps.Store, &run.req
	events, err := st.StickyEvents(ctx, joined, req.since.sticky, run.upTo, req.now, stickyPerSync)
	if err != nil {
		return 0, err
	}
	upTo = run.upTo
	if len(events) == stickyPerSync {
		upTo = events[len(events)-1].Pos // the others come next time
	}
	if len(fresh) > 0 && req.since.sticky > 0 {
		more, err := st.StickyEvents(ctx, fresh, 0, req.since.sticky, req.now, 10*stickyPerSync)
		if err != nil {
			return 0, err
		}
		events = append(more, events...)
	}
	run.sticky = make(map[matrix.RoomID][]matrix.StoredEvent)
	for _, e := range events {
		run.sticky[e.RoomID] = append(run.sticky[e.RoomID], e)
	}
	return upTo, nil
}

// wants reports whether the filter lets a room through.
func (run *syncRun) wants(room matrix.RoomID) bool {
	f := &run.req.filter.Room
	return (f.Rooms == nil || slices.Contains(f.Rooms, room)) && !slices.Contains(f.NotRooms, room)
}

// allRooms fills in the sections of rooms.
func (run *syncRun) allRooms(ctx context.Context) error {
	since := run.req.since.pos
	for _, m := range run.members {
		if !run.wants(m.Room) {
			continue
		}
		var err error
		switch m.Membership {
		case matrix.MembershipJoin:
			err = run.joined(ctx, m)
		case matrix.MembershipInvite, matrix.MembershipKnock:
			if run.req.initial || m.Pos > since {
				err = run.stripped(ctx, m)
			}
		case matrix.MembershipLeave, matrix.MembershipBan:
			if m.Forgotten {
				break
			}
			if run.req.initial && run.req.filter.Room.IncludeLeave || !run.req.initial && m.Pos > since {
				err = run.leftRoom(ctx, m)
			}
		}
		if err != nil {
			return fmt.Errorf("room %s: %w", m.Room, err)
		}
	}
	return nil
}

// joined adds a joined room if it has anything new.
func (run *syncRun) joined(ctx context.Context, m matrix.Member) error {
	req := &run.req
	typists, typing := run.s.typing.in(m.Room, req.since.typing)
	if req.initial {
		typing = len(typists) > 0
	}
	fresh := req.initial || req.fullState
	moved := run.heads[m.Room] > req.since.pos
	if !fresh && !moved && !typing && len(run.receipts[m.Room]) == 0 && len(run.data[m.Room]) == 0 && len(run.sticky[m.Room]) == 0 {
		return nil
	}
	var rd *reader
	var err error
	if !fresh && m.Pos <= req.since.pos {
		rd = steady(m) // nothing but what is newer than the join is looked at
	} else if rd, err = run.s.reader(ctx, m.Room, req.user, run.upTo); err != nil {
		return err
	}
	// Joined since the token, or joined again: for the client the room is new.
	newly := req.initial
	if !req.initial && m.Pos > req.since.pos {
		newly = rd.newlyJoined(req.since.pos)
	}
	if newly && !req.initial {
		if run.data[m.Room], err = run.s.roomAccountData(ctx, req.user, m.Room, run.upTo); err != nil {
			return err
		}
	}
	j, err := run.timeline(ctx, m.Room, rd, newly, run.upTo)
	if err != nil {
		return err
	}
	run.ephemeral(j, m.Room, typists, typing || (newly && len(typists) > 0))
	run.roomData(j, m.Room)
	run.stickyEvents(j, m.Room)
	j.raw.complete = j.raw.complete && !fresh && m.Pos <= req.since.pos // else not all of it may be the user's to read
	count, err := run.s.unreadIn(ctx, req.user, m.Room, run.upTo, j.raw)
	if err != nil {
		return err
	}
	j.Unread = map[string]int{"notification_count": count.notify, "highlight_count": count.highlight}
	if !j.worthIt && !fresh && !newly {
		return nil
	}
	if run.rooms.Join == nil {
		run.rooms.Join = make(map[matrix.RoomID]*syncJoined)
	}
	run.rooms.Join[m.Room] = j
	return nil
}

// newlyJoined reports whether the user was out of the room at or after a
// position, before the present stay.
func (r *reader) newlyJoined(since int64) bool {
	if _, then := r.membership(since); then != matrix.MembershipJoin {
		return true
	}
	for i := range r.members {
		if e := &r.members[i]; e.Pos > since && e.Membership() != matrix.MembershipJoin {
			return true
		}
	}
	return false
}

// roomAccountData returns all of a user's data for one room.
func (s *Server) roomAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, upTo int64) ([]matrix.AccountData, error) {
	all, err := s.deps.Store.RoomAccountData(ctx, user, 0, upTo)
	return all[room], err
}

// timeline makes the timeline and the state of a room up to a position. A room
// that is new to the client starts with its newest events and its whole state.
func (run *syncRun) timeline(ctx context.Context, room matrix.RoomID, rd *reader, newly bool, upTo int64) (*syncJoined, error) {
	req, st := &run.req, run.s.deps.Store
	since := req.since.pos
	if newly {
		since = 0
	}
	filter := &req.filter.Room.Timeline
	limit := filter.limit(syncTimelineLimit, syncTimelineLimitMax)
	raw := rawEvents{since: since}
	p, err := run.s.walk(ctx, room, upTo, since, true, limit, func(e *matrix.StoredEvent) bool {
		raw.events = append(raw.events, *e)
		return filter.allows(e) && rd.allows(e) && !run.ignored.hides(e)
	})
	if err != nil {
		return nil, err
	}
	raw.complete = !p.more
	slices.Reverse(p.events)
	start := since // the timeline begins after this position
	limited := p.more || (newly && !req.initial)
	if len(p.events) > 0 && (limited || newly) {
		start = p.events[0].Pos - 1
	} else if p.more {
		start = upTo
	}
	v := req.viewer
	v.reader = rd
	j := &syncJoined{Timeline: &syncTimeline{Events: v.formatAll(p.events), Limited: limited, PrevBatch: at(start)}, raw: raw}
	if err := run.s.bundle(ctx, rd, room, j.Timeline.Events); err != nil {
		return nil, err
	}
	whole := newly || req.fullState
	var state []matrix.StoredEvent
	switch {
	case req.stateAfter != "" && whole:
		state, err = st.State(ctx, room, upTo)
	case req.stateAfter != "":
		state, err = st.StateChanges(ctx, room, since, upTo)
	default:
		state, err = run.stateBefore(ctx, room, p.events, whole, since, start, upTo)
	}
	if err != nil {
		return nil, err
	}
	if j.Summary, err = run.summary(ctx, room, rd, whole, state, p.events); err != nil {
		return nil, err
	}
	if req.filter.Room.State.LazyLoadMembers {
		if state, err = run.lazyMembers(ctx, room, state, p.events, j.Summary, whole, upTo); err != nil {
			return nil, err
		}
	}
	list := &syncEvents{Events: []any{}}
	for i := range state {
		if req.filter.Room.State.allows(&state[i]) {
			list.Events = append(list.Events, v.format(&state[i]))
		}
	}
	j.setState(req.stateAfter, list)
	j.worthIt = len(p.events) > 0 || len(list.Events) > 0 || limited
	return j, nil
}

// setState puts state where the client wants it.
func (j *syncJoined) setState(stateAfter string, list *syncEvents) {
	switch stateAfter {
	case "":
		j.State = list
	case "state_after":
		j.StateAfter = list
	default:
		j.StateAfterOld = list
	}
}

// stateBefore returns the state that a client needs before the events of the
// timeline: what changed before its start, and what changed within it but is not
// shown by it, because the filter or the limit left it out.
func (run *syncRun) stateBefore(ctx context.Context, room matrix.RoomID, timeline []matrix.StoredEvent, whole bool, since, start, upTo int64) ([]matrix.StoredEvent, error) {
	st := run.s.deps.Store
	var before []matrix.StoredEvent
	var err error
	from := since
	if whole {
		from = 0
	}
	if start > from {
		if before, err = st.StateChanges(ctx, room, from, start); err != nil {
			return nil, err
		}
	}
	if run.req.filter.Room.Timeline.everything() && len(timeline) > 0 {
		return before, nil
	}
	after, err := st.StateChanges(ctx, room, max(start, from), upTo)
	if err != nil {
		return nil, err
	}
	shown := make(map[matrix.EventID]bool, len(timeline))
	for i := range timeline {
		shown[timeline[i].ID] = true
	}
	for _, e := range after {
		if shown[e.ID] {
			continue
		}
		before = slices.DeleteFunc(before, func(b matrix.StoredEvent) bool { return b.Type == e.Type && *b.StateKey == *e.StateKey })
		before = append(before, e)
	}
	return before, nil
}

// lazyMembers leaves out the members whom the client does not need yet, and adds
// those whom it does: the senders in the timeline, the heroes, itself
// (client-server API, "Lazy-loading room members"). Changes of membership are
// never left out.
func (run *syncRun) lazyMembers(ctx context.Context, room matrix.RoomID, state, timeline []matrix.StoredEvent, summary map[string]any, whole bool, upTo int64) ([]matrix.StoredEvent, error) {
	needed := make(map[string]bool)
	for i := range timeline {
		needed[string(timeline[i].Sender)] = true
	}
	if whole {
		needed[string(run.req.user)] = true
		heroes, _ := summary["m.heroes"].([]matrix.UserID)
		for _, h := range heroes {
			needed[string(h)] = true
		}
		return slices.DeleteFunc(state, func(e matrix.StoredEvent) bool { return e.Type == "m.room.member" && !needed[*e.StateKey] }), nil
	}
	for i := range state {
		if state[i].Type == "m.room.member" {
			delete(needed, *state[i].StateKey)
		}
	}
	if run.req.stateAfter == "" {
		for i := range timeline { // these come with the timeline itself
			if timeline[i].Type == "m.room.member" && timeline[i].StateKey != nil {
				delete(needed, *timeline[i].StateKey)
			}
		}
	}
	keys := make([]matrix.StateKeyTuple, 0, len(needed))
	for u := range needed {
		keys = append(keys, matrix.StateKeyTuple{Type: "m.room.member", Key: u})
	}
	more, err := run.s.deps.Store.StateEvents(ctx, room, upTo, keys...)
	return append(state, more...), err
}

// summary counts members and names heroes when members changed or the room is
// new; nil otherwise.
func (run *syncRun) summary(ctx context.Context, room matrix.RoomID, rd *reader, whole bool, lists ...[]matrix.StoredEvent) (map[string]any, error) {
	changed := whole
	for _, l := range lists {
		changed = changed || slices.ContainsFunc(l, func(e matrix.StoredEvent) bool { return e.Type == "m.room.member" })
	}
	if !changed || rd.now() != matrix.MembershipJoin {
		return nil, nil
	}
	members, err := run.s.deps.Store.Members(ctx, room)
	if err != nil {
		return nil, err
	}
	joined, invited := 0, 0
	var present, gone []matrix.UserID
	for _, m := range members {
		switch m.Membership {
		case matrix.MembershipJoin:
			joined++
		case matrix.MembershipInvite:
			invited++
		default:
			if m.User != run.req.user && m.Membership != matrix.MembershipKnock {
				gone = append(gone, m.User)
			}
			continue
		}
		if m.User != run.req.user {
			present = append(present, m.User)
		}
	}
	heroes := present
	if len(heroes) == 0 {
		heroes = gone
	}
	heroes = heroes[:min(len(heroes), maxHeroes)]
	if heroes == nil {
		heroes = []matrix.UserID{}
	}
	return map[string]any{"m.heroes": heroes, "m.joined_member_count": joined, "m.invited_member_count": invited}, nil
}

// ephemeral adds typing and receipts.
func (run *syncRun) ephemeral(j *syncJoined, room matrix.RoomID, typists []matrix.UserID, typing bool) {
	f := &run.req.filter.Room.Ephemeral
	if !f.allowsRoom(room) {
		return
	}
	j.Ephemeral = &syncEvents{Events: []any{}}
	if typing && f.allowsType("m.typing") {
		j.Ephemeral.Events = append(j.Ephemeral.Events, map[string]any{"type": "m.typing", "content": map[string]any{"user_ids": typists}})
	}
	if f.allowsType("m.receipt") {
		if e := receiptEvent(run.receipts[room], run.req.user); e != nil {
			j.Ephemeral.Events = append(j.Ephemeral.Events, e)
		}
	}
	j.worthIt = j.worthIt || len(j.Ephemeral.Events) > 0
}

// roomData adds the user's data for a room.
func (run *syncRun) roomData(j *syncJoined, room matrix.RoomID) {
	j.AccountData = &syncEvents{Events: []any{}}
	for _, d := range run.data[room] {
		if run.req.filter.Room.AccountData.allowsType(d.Type) {
			j.AccountData.Events = append(j.AccountData.Events, dataEvent(d))
		}
	}
	j.worthIt = j.worthIt || len(j.AccountData.Events) > 0
}

func dataEvent(d matrix.AccountData) map[string]any {
	return map[string]any{"type": d.Type, "content": d.Content}
}

// stickyEvents adds the sticky events that the timeline does not show. History
// visibility does not apply to them.
func (run *syncRun) stickyEvents(j *syncJoined, room matrix.RoomID) {
	shown := make(map[matrix.EventID]bool, len(j.Timeline.Events))
	for _, e := range j.Timeline.Events {
		shown[e.EventID] = true
	}
	var list []any
	for i := range run.sticky[room] {
		e := &run.sticky[room][i]
		if _, ignored := run.ignored[e.Sender]; !ignored && !shown[e.ID] {
			list = append(list, run.req.viewer.format(e))
		}
	}
	if len(list) > 0 {
		j.Sticky = &syncEvents{Events: list}
		j.worthIt = true
	}
}

// stripped adds an invite or a knock.
func (run *syncRun) stripped(ctx context.Context, m matrix.Member) error {
	if _, ignored := run.ignored[m.Sender]; ignored && m.Membership == matrix.MembershipInvite {
		return nil
	}
	state, err := run.s.strippedState(ctx, m)
	if err != nil {
		return err
	}
	events := syncEvents{Events: anys(state)}
	if m.Membership == matrix.MembershipInvite {
		if run.rooms.Invite == nil {
			run.rooms.Invite = make(map[matrix.RoomID]map[string]any)
		}
		run.rooms.Invite[m.Room] = map[string]any{"invite_state": events}
		return nil
	}
	if run.rooms.Knock == nil {
		run.rooms.Knock = make(map[matrix.RoomID]map[string]any)
	}
	run.rooms.Knock[m.Room] = map[string]any{"knock_state": events}
	return nil
}

// strippedState is what somebody who is invited, or knocks, learns of a room
// (client-server API, "Stripped state").
func (s *Server) strippedState(ctx context.Context, m matrix.Member) ([]*strippedEvent, error) {
	keys := []matrix.StateKeyTuple{
		{Type: "m.room.create"}, {Type: "m.room.join_rules"}, {Type: "m.room.name"}, {Type: "m.room.topic"}, {Type: "m.room.avatar"},
		{Type: "m.room.canonical_alias"}, {Type: "m.room.encryption"}, {Type: "m.room.member", Key: string(m.User)},
	}
	if m.Sender != m.User {
		keys = append(keys, matrix.StateKeyTuple{Type: "m.room.member", Key: string(m.Sender)})
	}
	l, err := s.deps.Store.StateEvents(ctx, m.Room, m.Pos, keys...)
	if err != nil {
		return nil, err
	}
	out := make([]*strippedEvent, len(l))
	for i := range l {
		out[i] = &strippedEvent{l[i].Type, *l[i].StateKey, l[i].Sender, l[i].Content}
	}
	return out, nil
}

// leftRoom adds a room that the user has left since, or was thrown out of.
func (run *syncRun) leftRoom(ctx context.Context, m matrix.Member) error {
	rd, err := run.s.reader(ctx, m.Room, run.req.user, run.upTo)
	if err != nil {
		return err
	}
	then := matrix.MembershipNone
	if !run.req.initial {
		if _, then = rd.membership(run.req.since.pos); then == matrix.MembershipLeave && m.Membership == matrix.MembershipLeave && !rd.wasIn(run.req.since.pos) {
			return nil // nothing new to the client: left before, left now
		}
	}
	_, everIn := rd.lastLeft()
	var j *syncJoined
	if everIn {
		newly := then != matrix.MembershipJoin // the client does not know the room
		if j, err = run.timeline(ctx, m.Room, rd, newly, m.Pos); err != nil {
			return err
		}
	} else { // an invite that was turned down or withdrawn, a ban of a stranger
		e, err := run.s.deps.Store.StateEvents(ctx, m.Room, m.Pos, matrix.StateKeyTuple{Type: "m.room.member", Key: string(m.User)})
		if err != nil {
			return err
		}
		j = &syncJoined{Timeline: &syncTimeline{Events: run.req.viewer.formatAll(e)}}
		j.setState(run.req.stateAfter, &syncEvents{Events: []any{}})
	}
	run.roomData(j, m.Room)
	if run.rooms.Leave == nil {
		run.rooms.Leave = make(map[matrix.RoomID]*syncJoined)
	}
	run.rooms.Leave[m.Room] = j
	return nil
}

// wasIn reports whether the user was anything but out of the room at some time
// after a position.
func (r *reader) wasIn(since int64) bool {
	for i := range r.members {
		if e := &r.members[i]; e.Pos > since && e.Membership() != matrix.MembershipLeave {
			return true
		}
	}
	return false
}

// accountData returns what changed of the user's global data; nil: nothing.
func (run *syncRun) accountData(ctx context.Context) (*syncEvents, error) {
	l, err := run.s.deps.Store.GlobalAccountData(ctx, run.req.user, run.req.since.pos, run.upTo)
	if err != nil {
		return nil, err
	}
	var out []any
	for _, d := range l {
		if run.req.filter.AccountData.allowsType(d.Type) {
			out = append(out, dataEvent(d))
		}
	}
	if out == nil {
		return nil, nil
	}
	return &syncEvents{Events: out}, nil
}

// deviceLists adds device lists to follow and to forget; nil: none.
func (run *syncRun) deviceLists(ctx context.Context) (*syncDevices, error) {
	if run.req.initial {
		return nil, nil
	}
	d, err := run.s.deviceChanges(ctx, run.req.user, run.members, run.heads, run.req.since.pos, run.upTo)
	if err != nil || len(d.Changed)+len(d.Left) == 0 {
		return nil, err
	}
	return d, nil
}
