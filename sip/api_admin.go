package sip

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/ledger"
)

const (
	overviewRecords = 50
	maxRecords      = 1000
	transferPatient = time.Minute
)

func (a *API) getWhoami(r *apiRequest) (any, error) {
	return struct {
		UserID string `json:"user_id"`
		Admin  bool   `json:"admin"`
	}{r.user, true}, nil
}

// A trunkRow is a trunk as the operator's page shows it.
type trunkRow struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	Direction  string   `json:"direction"`
	Source     string   `json:"source"`
	Registered string   `json:"registered"`
	Expires    int64    `json:"expires,omitempty"`
	PingMS     float64  `json:"ping_ms"`
	Up         bool     `json:"up"`
	Problem    string   `json:"problem"`
	Since      int64    `json:"since,omitempty"`
	Calls      int      `json:"calls"`
	MaxCalls   int      `json:"max_calls"`
	Targets    []string `json:"targets"`
}

func trunkRows(states []call.TrunkState) []trunkRow {
	out := []trunkRow{}
	for _, s := range states {
		out = append(out, trunkRow{
			ID: s.Trunk.ID, Name: s.Trunk.Name, Direction: s.Trunk.Direction, Source: s.Source,
			Registered: s.Registered, Expires: millis(s.Expires), PingMS: inMillis(s.Ping), Up: s.Up,
			Problem: s.Problem, Since: millis(s.Since), Calls: s.Calls, MaxCalls: s.Trunk.MaxCalls,
			Targets: append([]string{}, s.Trunk.Targets...),
		})
	}
	return out
}

// A recordRow is a call detail record, with numbers in full: this is what bills
// are checked against.
type recordRow struct {
	ID       string     `json:"id"`
	Dir      string     `json:"dir"`
	Trunk    string     `json:"trunk"`
	From     string     `json:"from"`
	To       string     `json:"to"`
	Name     string     `json:"name,omitempty"`
	Room     string     `json:"room"`
	RoomID   string     `json:"room_id,omitempty"`
	MXID     string     `json:"mxid,omitempty"`
	Start    int64      `json:"start"`
	Ring     int64      `json:"ring,omitempty"`
	Answer   int64      `json:"answer,omitempty"`
	End      int64      `json:"end"`
	Codec    string     `json:"codec,omitempty"`
	SRTP     string     `json:"srtp,omitempty"`
	Cause    call.Cause `json:"cause"`
	Text     string     `json:"text"`
	Code     int        `json:"code,omitempty"`
	Q850     int        `json:"q850,omitempty"`
	Packets  uint64     `json:"packets"`
	Lost     uint64     `json:"lost"`
	JitterMS float64    `json:"jitter_ms"`
	MOS      float64    `json:"mos"`
	E2EE     bool       `json:"e2ee"`
	Crashed  bool       `json:"crashed,omitempty"`
}

func recordRows(records []ledger.Record) []recordRow {
	out := []recordRow{}
	for _, r := range records {
		out = append(out, recordRow{
			ID: r.ID, Dir: string(r.Direction), Trunk: r.Trunk, From: r.From, To: r.To, Name: r.Name,
			Room: r.Room, RoomID: r.RoomID, MXID: r.MXID,
			Start: millis(r.Start), Ring: millis(r.Ring), Answer: millis(r.Answer), End: millis(r.End),
			Codec: r.Codec, SRTP: r.SRTP, Cause: r.Cause, Text: r.Text, Code: r.Code, Q850: r.Q850,
			Packets: r.Packets, Lost: r.Lost, JitterMS: r.JitterMS, MOS: r.MOS, E2EE: r.E2EE, Crashed: r.Crashed,
		})
	}
	return out
}

// A banRow is an address that is shut out.
type banRow struct {
	Source    string `json:"source"`
	Why       string `json:"why"`
	UserAgent string `json:"user_agent,omitempty"`
	Since     int64  `json:"since"`
	Until     int64  `json:"until"`
	Strikes   int    `json:"strikes"`
	Drops     uint64 `json:"drops"`
}

func banRows(bans []guard.Ban) []banRow {
	out := []banRow{}
	for _, b := range bans {
		out = append(out, banRow{
			Source: b.IP.String(), Why: b.Why, UserAgent: b.Agent,
			Since: millis(b.Since), Until: millis(b.Until), Strikes: b.Count, Drops: b.Drops,
		})
	}
	return out
}

// totals are what happened today, in the server's time zone.
type totals struct {
	CallsToday   int     `json:"calls_today"`
	MinutesToday float64 `json:"minutes_today"`
	Active       int     `json:"active"`
}

func (a *API) getOverview(r *apiRequest) (any, error) {
	g := a.deps.Gateway
	legs := []legJSON{}
	for _, l := range g.Legs() {
		legs = append(legs, legFor(l, r.user, true))
	}
	now := a.now()
	year, month, day := now.Date()
	today := g.Records(ledger.Filter{Since: time.Date(year, month, day, 0, 0, 0, 0, now.Location()), Limit: 1 << 20})
	sums := totals{CallsToday: len(today), Active: len(legs)}
	for _, rec := range today {
		sums.MinutesToday += rec.Seconds / 60
	}
	return struct {
		Trunks  []trunkRow  `json:"trunks"`
		Legs    []legJSON   `json:"legs"`
		Bans    []banRow    `json:"bans"`
		Totals  totals      `json:"totals"`
		Records []recordRow `json:"records"`
	}{trunkRows(g.Trunks()), legs, banRows(g.Bans()), sums, recordRows(g.Records(ledger.Filter{Limit: overviewRecords}))}, nil
}

// getRecords returns call detail records, the latest first. The query narrows
// them: limit, trunk, direction, mxid, room_id, number, cause, since and before
// (milliseconds since 1970).
func (a *API) getRecords(r *apiRequest) (any, error) {
	q := r.URL.Query()
	f := ledger.Filter{
		Limit: 100, Trunk: q.Get("trunk"), Direction: call.Direction(q.Get("direction")),
		MXID: q.Get("mxid"), RoomID: q.Get("room_id"), Number: q.Get("number"), Cause: call.Cause(q.Get("cause")),
	}
	for name, set := range map[string]func(int64){
		"limit":  func(n int64) { f.Limit = int(min(n, maxRecords)) },
		"since":  func(n int64) { f.Since = time.UnixMilli(n) },
		"before": func(n int64) { f.Before = time.UnixMilli(n) },
	} {
		text := q.Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: name + ": a positive number"}
		}
		set(n)
	}
	return map[string]any{"records": recordRows(a.deps.Gateway.Records(f))}, nil
}

// getExplain goes through the dial plan for ?number= without calling it.
func (a *API) getExplain(r *apiRequest) (any, error) {
	number := r.URL.Query().Get("number")
	if number == "" || len(number) > apiMaxNumber {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_MISSING_PARAM", text: "number: needed"}
	}
	return a.deps.Gateway.Explain(number, r.URL.Query().Get("trunk")), nil
}

// Trunks and rules are JSON as in the configuration file, durations as text.

func (a *API) getTrunks(*apiRequest) (any, error) {
	list := []any{}
	for _, s := range a.deps.Gateway.Trunks() {
		t, err := trunkJSON(s)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return map[string]any{"trunks": list}, nil
}

func (a *API) getTrunk(r *apiRequest) (any, error) {
	for _, s := range a.deps.Gateway.Trunks() {
		if s.Trunk.ID == r.PathValue("trunkId") {
			return trunkJSON(s)
		}
	}
	return nil, &apiError{status: http.StatusNotFound, code: "M_NOT_FOUND", text: "no such trunk"}
}

// trunkJSON is a trunk's settings and whether they can be changed here.
func trunkJSON(s call.TrunkState) (any, error) {
	s.Trunk.Auth.Password = "" // whoever gave it knows it
	m, err := toObject(s.Trunk, trunkDurations)
	if err != nil {
		return nil, err
	}
	m["source"] = s.Source
	return m, nil
}

// putTrunk makes or replaces a trunk. Without a password it keeps the one it has
// for the same user name.
func (a *API) putTrunk(r *apiRequest) (any, error) {
	var t call.Trunk
	if err := r.readObject(&t, trunkDurations); err != nil {
		return nil, err
	}
	id := r.PathValue("trunkId")
	if t.ID != "" && t.ID != id {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "id: another than in the path"}
	}
	t.ID = id
	if !plainID(id) {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "id: letters, digits, - and _ only"}
	}
	return nil, a.deps.Gateway.SetTrunk(r.Context(), t)
}

func (a *API) deleteTrunk(r *apiRequest) (any, error) {
	return nil, a.deps.Gateway.DeleteTrunk(r.Context(), r.PathValue("trunkId"))
}

func (a *API) getRules(*apiRequest) (any, error) {
	list := []any{}
	for _, rule := range a.deps.Gateway.Rules() {
		m, err := toObject(rule, ruleDurations)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return map[string]any{"rules": list}, nil
}

func (a *API) getRule(r *apiRequest) (any, error) {
	for _, rule := range a.deps.Gateway.Rules() {
		if rule.ID == r.PathValue("ruleId") {
			return toObject(rule, ruleDurations)
		}
	}
	return nil, &apiError{status: http.StatusNotFound, code: "M_NOT_FOUND", text: "no such rule"}
}

func (a *API) putRule(r *apiRequest) (any, error) {
	var rule call.DispatchRule
	if err := r.readObject(&rule, ruleDurations); err != nil {
		return nil, err
	}
	id := r.PathValue("ruleId")
	if rule.ID != "" && rule.ID != id {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "id: another than in the path"}
	}
	if !plainID(id) {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "id: letters, digits, - and _ only"}
	}
	rule.ID = id
	return nil, a.deps.Gateway.SetRule(r.Context(), rule)
}

func (a *API) deleteRule(r *apiRequest) (any, error) {
	return nil, a.deps.Gateway.DeleteRule(r.Context(), r.PathValue("ruleId"))
}

func plainID(id string) bool {
	return id != "" && len(id) <= 64 &&
		strings.Trim(strings.ToLower(id), "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

func (a *API) deleteBan(r *apiRequest) (any, error) {
	ip, err := netip.ParseAddr(r.PathValue("source"))
	if err != nil {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_INVALID_PARAM", text: "not an address"}
	}
	if !a.deps.Gateway.LiftBan(ip.Unmap()) {
		return nil, &apiError{status: http.StatusNotFound, code: "M_NOT_FOUND", text: "this address is not shut out"}
	}
	a.deps.Log.Info("a ban was lifted", "ip", ip, "by", r.user)
	return nil, nil
}

func (a *API) adminHangup(r *apiRequest) (any, error) {
	if err := a.deps.Gateway.Hangup(context.WithoutCancel(r.Context()), r.leg()); err != nil {
		return nil, err
	}
	a.deps.Log.Info("an administrator hung up a call", "leg", r.leg(), "by", r.user)
	return nil, nil
}

func (a *API) adminMute(r *apiRequest) (any, error) {
	var body struct {
		Muted *bool `json:"muted"`
	}
	if err := r.read(&body, false); err != nil {
		return nil, err
	}
	if body.Muted == nil {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_MISSING_PARAM", text: "muted: needed"}
	}
	return nil, a.deps.Gateway.Mute(r.leg(), *body.Muted)
}

// adminTransfer sends a phone elsewhere and answers when that is done.
func (a *API) adminTransfer(r *apiRequest) (any, error) {
	var body struct {
		To      string            `json:"to"`
		Headers map[string]string `json:"headers"`
	}
	if err := r.read(&body, false); err != nil {
		return nil, err
	}
	if body.To == "" || len(body.To) > 256 {
		return nil, &apiError{status: http.StatusBadRequest, code: "M_MISSING_PARAM", text: "to: a number, sip: or tel: URI is needed"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), transferPatient)
	defer cancel()
	return nil, a.deps.Gateway.Transfer(ctx, r.leg(), body.To, body.Headers)
}

// The names, as paths, of what is a duration.
var (
	trunkDurations = []string{"options_ping", "max_duration"}
	ruleDurations  = []string{"action.timeout", "action.lockout"}
)

// toObject encodes v with its durations as "30s".
func toObject(v any, durations []string) (map[string]any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	return m, eachAt(m, durations, func(v any) (any, error) {
		n, ok := v.(json.Number)
		if !ok {
			return v, nil
		}
		ns, err := n.Int64()
		return time.Duration(ns).String(), err
	})
}

// readObject is the reverse of toObject. Unknown keys are errors, as in the
// configuration file.
func (r *apiRequest) readObject(into any, durations []string) error {
	var m map[string]any
	if err := r.read(&m, false); err != nil {
		return err
	}
	delete(m, "source") // told by GET, so it may come back
	err := eachAt(m, durations, func(v any) (any, error) {
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("a duration as \"30s\" is needed")
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, fmt.Errorf("%q is not a duration", text)
		}
		return int64(d), nil
	})
	if err != nil {
		return &apiError{status: http.StatusBadRequest, code: "M_BAD_JSON", text: err.Error()}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &apiError{status: http.StatusBadRequest, code: "M_BAD_JSON", text: strings.TrimPrefix(err.Error(), "json: ")}
	}
	return nil
}

// eachAt replaces the values at dotted paths of m, where there are any.
func eachAt(m map[string]any, paths []string, f func(any) (any, error)) error {
	for _, path := range paths {
		keys := strings.Split(path, ".")
		at := m
		for _, k := range keys[:len(keys)-1] {
			at, _ = at[k].(map[string]any)
		}
		last := keys[len(keys)-1]
		v, ok := at[last]
		if !ok {
			continue
		}
		changed, err := f(v)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		at[last] = changed
	}
	return nil
}
