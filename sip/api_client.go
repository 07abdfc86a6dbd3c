package sip

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// routes lists everything that the API serves.
func (a *API) routes() []apiRoute {
	routes := []apiRoute{
		{"GET", "/_trunkhall/admin/v1/whoami", true, a.getWhoami},
		{"GET", "/_trunkhall/admin/v1/phones", true, a.getOverview},
		{"GET", "/_trunkhall/admin/v1/phones/records", true, a.getRecords},
		{"GET", "/_trunkhall/admin/v1/phones/explain", true, a.getExplain},
		{"GET", "/_trunkhall/admin/v1/phones/trunks", true, a.getTrunks},
		{"GET", "/_trunkhall/admin/v1/phones/trunks/{trunkId}", true, a.getTrunk},
		{"PUT", "/_trunkhall/admin/v1/phones/trunks/{trunkId}", true, a.putTrunk},
		{"DELETE", "/_trunkhall/admin/v1/phones/trunks/{trunkId}", true, a.deleteTrunk},
		{"GET", "/_trunkhall/admin/v1/phones/rules", true, a.getRules},
		{"GET", "/_trunkhall/admin/v1/phones/rules/{ruleId}", true, a.getRule},
		{"PUT", "/_trunkhall/admin/v1/phones/rules/{ruleId}", true, a.putRule},
		{"DELETE", "/_trunkhall/admin/v1/phones/rules/{ruleId}", true, a.deleteRule},
		{"DELETE", "/_trunkhall/admin/v1/phones/bans/{source}", true, a.deleteBan},
		{"POST", "/_trunkhall/admin/v1/phones/legs/{legId}/hangup", true, a.adminHangup},
		{"POST", "/_trunkhall/admin/v1/phones/legs/{legId}/mute", true, a.adminMute},
		{"POST", "/_trunkhall/admin/v1/phones/legs/{legId}/transfer", true, a.adminTransfer},
	}
	if a.deps.Rooms == nil {
		return routes
	}
	return append(routes,
		apiRoute{"GET", "/_trunkhall/phones/v1/config", false, a.getConfig},
		apiRoute{"GET", "/_trunkhall/phones/v1/rooms/{roomId}", false, a.getRoom},
		apiRoute{"POST", "/_trunkhall/phones/v1/rooms/{roomId}/pin", false, a.postPIN},
		apiRoute{"PUT", "/_trunkhall/phones/v1/rooms/{roomId}/settings", false, a.putSettings},
		apiRoute{"POST", "/_trunkhall/phones/v1/rooms/{roomId}/dial", false, a.postDial},
		apiRoute{"GET", "/_trunkhall/phones/v1/legs/{legId}", false, a.getLeg},
		apiRoute{"POST", "/_trunkhall/phones/v1/legs/{legId}/digits", false, a.postDigits},
		apiRoute{"POST", "/_trunkhall/phones/v1/legs/{legId}/hangup", false, a.postHangup},
		apiRoute{"POST", "/_trunkhall/phones/v1/legs/{legId}/admit", false, a.postAdmit},
	)
}

// A numberJSON is a number that people can dial.
type numberJSON struct {
	Number   string `json:"number"`
	Display  string `json:"display"`
	Language string `json:"language,omitempty"`
}

func (a *API) numbers() []numberJSON {
	out := []numberJSON{}
	for _, n := range a.deps.Gateway.Numbers() {
		out = append(out, numberJSON{n.Number, numbers.Display(n.Number), n.Language})
	}
	return out
}

// A legJSON is a leg as one reader may see it. Times are milliseconds since 1970,
// absent if not yet.
type legJSON struct {
	ID        call.LegID     `json:"id"`
	Direction call.Direction `json:"direction"`
	State     call.LegState  `json:"state"`
	Trunk     string         `json:"trunk,omitempty"`
	Room      call.RoomName  `json:"room,omitempty"`
	RoomID    string         `json:"room_id,omitempty"`
	Identity  call.Identity  `json:"identity,omitempty"`
	UserID    string         `json:"user_id,omitempty"`
	Number    string         `json:"number,omitempty"`
	Local     string         `json:"local,omitempty"`
	Name      string         `json:"name,omitempty"`
	By        string         `json:"by,omitempty"`
	Created   int64          `json:"created,omitempty"`
	Ringing   int64          `json:"ringing,omitempty"`
	Answered  int64          `json:"answered,omitempty"`
	Ended     int64          `json:"ended,omitempty"`
	Code      int            `json:"code,omitempty"`
	Q850      int            `json:"q850,omitempty"`
	Cause     call.Cause     `json:"cause,omitempty"`
	Text      string         `json:"text,omitempty"`
	Codec     string         `json:"codec,omitempty"`
	SRTP      string         `json:"srtp,omitempty"`
	Encrypted bool           `json:"encrypted"`
	Held      bool           `json:"held"`
	Muted     bool           `json:"muted"`
	Hand      bool           `json:"hand"`
	Mine      bool           `json:"mine"`
	Stats     legStatsJSON   `json:"stats"`
}

type legStatsJSON struct {
	Packets   uint64  `json:"packets"`
	Lost      uint64  `json:"lost"`
	JitterMS  float64 `json:"jitter_ms"`
	RTTMS     float64 `json:"rtt_ms"`
	MOS       float64 `json:"mos"`
	Strangers uint64  `json:"strangers"`
}

// legFor shows a leg to somebody. Only who dialled the number, and administrators,
// see it whole; trunks and our own numbers are for administrators.
func legFor(l call.Leg, user string, admin bool) legJSON {
	out := legJSON{
		ID: l.ID, Direction: l.Direction, State: l.State, Room: l.Room, RoomID: l.RoomID, Identity: l.Identity,
		UserID: ghostOf(l.Identity), Number: l.Number, Name: l.Name, By: l.By,
		Created: millis(l.Created), Ringing: millis(l.Ringing), Answered: millis(l.Answered), Ended: millis(l.Ended),
		Code: l.Code, Q850: l.Q850, Cause: l.Cause, Text: l.Text, Codec: l.Codec, SRTP: l.SRTP,
		Encrypted: l.Encrypted, Held: l.Held, Muted: l.Muted, Hand: l.Hand,
		Mine: l.By != "" && l.By == user,
		Stats: legStatsJSON{
			Packets: l.Stats.Packets, Lost: l.Stats.Lost, JitterMS: inMillis(l.Stats.Jitter), RTTMS: inMillis(l.Stats.RTT),
			MOS: l.Stats.MOS, Strangers: l.Stats.Strangers,
		},
	}
	if admin {
		out.Trunk, out.Local = l.Trunk, l.Local
		return out
	}
	if !out.Mine {
		if out.Number = numbers.Mask(l.Number); l.Hidden {
			out.Number = ""
		}
		if sameDigits(l.Name, l.Number) {
			out.Name = out.Number
		}
	}
	return out
}

// sameDigits reports whether a display name is only another spelling of a number.
func sameDigits(name, number string) bool {
	digits := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' {
				return r
			}
			return -1
		}, s)
	}
	n, written := digits(number), strings.TrimLeft(digits(name), "0")
	// Without the country's code too.
	return n != "" && (strings.Contains(written, n) || len(written) >= 5 && strings.HasSuffix(n, written))
}

// ghostOf returns the Matrix user behind a participant whose identity names one.
func ghostOf(id call.Identity) string {
	if !strings.HasPrefix(string(id), "@_phone_") {
		return ""
	}
	user, _, _ := cutLast(string(id), ":")
	if !strings.Contains(user, ":") {
		return ""
	}
	return user
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func inMillis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (a *API) getConfig(*apiRequest) (any, error) {
	return struct {
		Enabled bool         `json:"enabled"`
		DialOut bool         `json:"dial_out"`
		Numbers []numberJSON `json:"numbers"`
	}{true, a.mayDialOut(), a.numbers()}, nil
}

func (a *API) mayDialOut() bool { return a.deps.DialOut != nil && a.deps.DialOut() }

// A roomJSON is a room's telephones as one of its members sees them.
type roomJSON struct {
	Numbers   []numberJSON `json:"numbers"`
	PIN       string       `json:"pin"`
	MayDial   bool         `json:"may_dial"`
	MayChange bool         `json:"may_change"`
	MayAdmit  bool         `json:"may_admit"`
	E2EE      string       `json:"e2ee"`
	Encrypted bool         `json:"encrypted"`
	Lobby     bool         `json:"lobby"`
	Locked    bool         `json:"locked"`
	Waiting   []legJSON    `json:"waiting"`
	Legs      []legJSON    `json:"legs"`
}

func (a *API) getRoom(r *apiRequest) (any, error) { return a.room(r, r.PathValue("roomId")) }

func (a *API) room(r *apiRequest, roomID string) (any, error) {
	d, err := a.dialIn(r, roomID)
	if err != nil {
		return nil, err
	}
	out := roomJSON{
		Numbers: a.numbers(), PIN: d.PIN,
		MayDial: d.MayDial && a.mayDialOut(), MayChange: d.MayChange, MayAdmit: d.MayAdmit,
		E2EE: d.E2EE, Encrypted: d.Encrypted, Lobby: d.Lobby, Locked: d.Locked,
		Waiting: []legJSON{}, Legs: []legJSON{},
	}
	waiting := a.deps.Rooms.Waiting(roomID)
	for _, l := range a.deps.Gateway.Legs() {
		isWaiting := slices.ContainsFunc(waiting, func(w call.Waiting) bool { return w.Leg == l.ID })
		if l.RoomID == roomID && !isWaiting {
			out.Legs = append(out.Legs, legFor(l, r.user, false))
		}
	}
	for _, w := range waiting {
		l, ok := a.deps.Gateway.Leg(w.Leg)
		if !ok {
			continue // hung up just now
		}
		l.RoomID = roomID
		if l.Name == "" {
			l.Name = w.Name
		}
		out.Waiting = append(out.Waiting, legFor(l, r.user, false))
	}
	return out, nil
}

// dialIn returns a room's settings as the one who asks sees them. Rooms of which
// they are no member look as if there were none.
func (a *API) dialIn(r *apiRequest, roomID string) (call.DialIn, error) {
	if !strings.HasPrefix(roomID, "!") || len(roomID) > 255 {
		return call.DialIn{}, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "not a room ID"}
	}
	d, err := a.deps.Rooms.DialIn(r.Context(), roomID, r.user)
	switch {
	case errors.Is(err, call.ErrForbidden), errors.Is(err, call.ErrNotFound):
		return d, &apiError{status: http.StatusForbidden, code: "M_FORBIDDEN", text: "you are not in this room"}
	case err != nil:
		return d, fmt.Errorf("telephones of room %s: %w", roomID, err)
	}
	return d, nil
}

func (a *API) postPIN(r *apiRequest) (any, error) {
	if _, err := a.dialIn(r, r.PathValue("roomId")); err != nil {
		return nil, err
	}
	pin, err := a.deps.Rooms.RotatePIN(r.Context(), r.PathValue("roomId"), r.user)
	if err != nil {
		return nil, err
	}
	return map[string]string{"pin": pin}, nil
}

func (a *API) putSettings(r *apiRequest) (any, error) {
	var c call.DialInChange
	if err := r.read(&c, true); err != nil {
		return nil, err
	}
	if c.E2EE != nil && *c.E2EE != "allow" && *c.E2EE != "deny" {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "e2ee: allow or deny"}
	}
	roomID := r.PathValue("roomId")
	if _, err := a.dialIn(r, roomID); err != nil {
		return nil, err
	}
	if err := a.deps.Rooms.ChangeDialIn(r.Context(), roomID, r.user, c); err != nil {
		return nil, err
	}
	return a.room(r, roomID)
}

func (a *API) postDial(r *apiRequest) (any, error) {
	var body struct {
		Number string `json:"number"`
		Name   string `json:"name"`
	}
	if err := r.read(&body, false); err != nil {
		return nil, err
	}
	switch {
	case body.Number == "":
		return nil, &apiError{status: http.StatusBadRequest, code: "M_MISSING_PARAM", text: "number: needed"}
	case len(body.Number) > apiMaxNumber, len(body.Name) > apiMaxName:
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "number or name is too long"}
	}
	roomID := r.PathValue("roomId")
	d, err := a.dialIn(r, roomID)
	if err != nil {
		return nil, err
	}
	if !d.MayDial {
		return nil, &apiError{status: http.StatusForbidden, code: "M_FORBIDDEN", text: "you may not call telephones into this room", cause: call.CauseNotAllowed}
	}
	if wait := a.dials.take(r.user, a.now()); wait > 0 {
		return nil, &apiError{status: http.StatusTooManyRequests, code: "M_LIMIT_EXCEEDED", text: "too many calls at once", cause: call.CauseLimit, wait: wait}
	}
	place, err := a.deps.Rooms.Room(r.Context(), roomID)
	if err != nil {
		return nil, err
	}
	// The call outlives this request.
	leg, err := a.deps.Gateway.Dial(context.WithoutCancel(r.Context()), call.DialRequest{
		Room: place.Room, RoomID: roomID, By: r.user, Number: body.Number, Name: body.Name,
	})
	if err != nil {
		return nil, dialFailure(leg, err)
	}
	return legFor(leg, r.user, r.admin), nil
}

// dialFailure tells why a number is not called, with the cause that clients have
// words of their own for.
func dialFailure(leg call.Leg, err error) error {
	e := &apiError{cause: leg.Cause, text: leg.Text}
	if e.cause == call.CauseNone {
		e.cause = CauseOf(err)
	}
	for _, k := range apiKinds {
		if errors.Is(err, k.kind) {
			e.status, e.code = k.status, k.code
			if e.text == "" {
				e.text = err.Error()
			}
			break
		}
	}
	if e.cause == call.CauseLimit {
		e.status, e.code = http.StatusTooManyRequests, "M_LIMIT_EXCEEDED"
	}
	if e.status == 0 {
		return fmt.Errorf("dial: %w", err)
	}
	return e
}

// visibleLeg returns a leg that the one who asks may know of: it is theirs, or in
// a room of theirs. d is what they may do there.
func (a *API) visibleLeg(r *apiRequest) (l call.Leg, d call.DialIn, err error) {
	unknown := &apiError{status: http.StatusNotFound, code: "M_NOT_FOUND", text: "no such call"}
	l, ok := a.deps.Gateway.Leg(r.leg())
	if !ok {
		return l, d, unknown
	}
	roomID := l.RoomID
	if roomID != "" {
		d, err = a.deps.Rooms.DialIn(r.Context(), roomID, r.user)
		if err == nil {
			return l, d, nil
		}
		if !errors.Is(err, call.ErrForbidden) && !errors.Is(err, call.ErrNotFound) {
			return l, d, fmt.Errorf("telephones of room %s: %w", roomID, err)
		}
	}
	if l.By == r.user || r.admin {
		return l, call.DialIn{}, nil
	}
	return l, call.DialIn{}, unknown
}

// getLeg shows a leg; with seen it waits until its state is another.
func (a *API) getLeg(r *apiRequest) (any, error) {
	l, _, err := a.visibleLeg(r)
	if err != nil {
		return nil, err
	}
	query := r.URL.Query()
	seen, timeout := call.LegState(query.Get("seen")), apiLongPoll
	if text := query.Get("timeout"); text != "" {
		ms, err := strconv.ParseInt(text, 10, 32)
		if err != nil || ms < 0 {
			return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "timeout: milliseconds"}
		}
		timeout = min(time.Duration(ms)*time.Millisecond, apiMaxPoll)
	}
	if seen == "" || seen != l.State || l.State == call.LegEnded {
		return legFor(l, r.user, r.admin), nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if l, err = a.deps.Gateway.Wait(ctx, l.ID, seen); err != nil {
		return nil, err
	}
	return legFor(l, r.user, r.admin), nil
}

// mayControl lets those act on a leg who dialled it, and those who change the
// room's telephones.
func mayControl(r *apiRequest, l call.Leg, d call.DialIn) error {
	if l.By == r.user || d.MayChange || r.admin {
		return nil
	}
	return &apiError{status: http.StatusForbidden, code: "M_FORBIDDEN", text: "this call is not yours"}
}

func (a *API) postDigits(r *apiRequest) (any, error) {
	var body struct {
		Digits string `json:"digits"`
	}
	if err := r.read(&body, false); err != nil {
		return nil, err
	}
	if body.Digits == "" || len(body.Digits) > apiMaxDigits || strings.Trim(body.Digits, "0123456789*#ABCDabcd") != "" {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: fmt.Sprintf("digits: 1 to %d of 0-9, A-D, * and #", apiMaxDigits)}
	}
	l, d, err := a.visibleLeg(r)
	if err != nil {
		return nil, err
	}
	if err := mayControl(r, l, d); err != nil {
		return nil, err
	}
	return nil, a.deps.Gateway.Digits(l.ID, strings.ToUpper(body.Digits))
}

func (a *API) postHangup(r *apiRequest) (any, error) {
	l, d, err := a.visibleLeg(r)
	if err != nil {
		return nil, err
	}
	if err := mayControl(r, l, d); err != nil {
		return nil, err
	}
	return nil, a.deps.Gateway.Hangup(context.WithoutCancel(r.Context()), l.ID)
}

func (a *API) postAdmit(r *apiRequest) (any, error) {
	var body struct {
		Admit *bool `json:"admit"`
	}
	if err := r.read(&body, false); err != nil {
		return nil, err
	}
	if body.Admit == nil {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_MISSING_PARAM", text: "admit: needed"}
	}
	// A phone in the lobby is in no room yet: whose lobby it is, the rooms know.
	return nil, a.deps.Rooms.Admit(r.Context(), r.leg(), r.user, *body.Admit)
}
