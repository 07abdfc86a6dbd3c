package sip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// transferLimit bounds how long the other side may take to say how a transfer
// went.
const transferLimit = 3 * time.Minute

// Transfer sends the phone elsewhere (REFER, RFC 3515) and returns when the other
// side says how it went; the leg ends if it went well. to is a number, a "tel:" or
// "sip:" URI, or the id of another leg whose phone takes the call over (RFC 3891).
// headers are extension headers. A final refusal is a *call.StatusError.
func (s *Server) Transfer(ctx context.Context, id call.LegID, to string, headers map[string]string) error {
	l := s.find(id)
	if l == nil {
		return errGone
	}
	var extra []dialog.Header
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		if !goodHeader(name) {
			return fmt.Errorf("header %q may not be set: %w", name, call.ErrInvalid)
		}
		extra = append(extra, dialog.Header{Name: name, Value: headers[name]})
	}
	ctx, cancel := context.WithTimeout(ctx, transferLimit)
	defer cancel()
	if err := l.confirmed(ctx); err != nil {
		return err
	}
	var d *dialog.Call
	var trunk call.Trunk
	if err := l.ask(func() error {
		d, trunk = l.dialog, l.trunk
		return nil
	}); err != nil {
		return err
	}
	target, replaces, err := s.transferTarget(l, trunk, to)
	if err != nil {
		return err
	}
	for stale := true; stale; {
		select {
		case <-l.refers: // how an earlier one went that nobody waited for any more
		default:
			stale = false
		}
	}
	if err := d.Refer(ctx, target, replaces, extra...); err != nil {
		var refused *dialog.Refused
		if errors.As(err, &refused) {
			return &call.StatusError{Code: refused.Code, Reason: refused.Reason, Err: fmt.Errorf("transfer: %w", call.ErrUnavailable)}
		}
		return fmt.Errorf("transfer: %w", err)
	}
	for {
		select {
		case e := <-l.refers:
			switch {
			case e.Code < 200:
			case e.Code < 300:
				l.post(func() {
					l.end(verdict{cause: call.CauseTransferred, text: "transferred", q850: 16})
				})
				return nil
			default:
				return &call.StatusError{Code: e.Code, Reason: e.Reason, Err: fmt.Errorf("transfer: %w", call.ErrUnavailable)}
			}
		case <-l.ctx.Done():
			// Some providers say BYE in place of the last NOTIFY.
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the other side did not say how the transfer went: %w", call.ErrUnavailable)
		}
	}
}

// confirmed returns once the ACK of an answered leg is there: before, no request
// can be sent inside its dialog (RFC 3261 §14.1, §15). A leg that is not answered
// is refused at once.
func (l *leg) confirmed(ctx context.Context) error {
	now := l.snapshot()
	for now.State == call.LegAnswered && ctx.Err() == nil {
		now = l.wait(ctx, now.State)
	}
	switch now.State {
	case call.LegConfirmed:
		return nil
	case call.LegEnded:
		return errGone
	}
	return fmt.Errorf("the call is not answered yet: %w", call.ErrConflict)
}

// transferTarget makes a Refer-To. A number may be sent where it could be called:
// the provider bills for it.
func (s *Server) transferTarget(l *leg, trunk call.Trunk, to string) (string, *dialog.Call, error) {
	if strings.HasPrefix(to, "SCL_") {
		other := s.find(call.LegID(to))
		if other == nil || other == l {
			return "", nil, fmt.Errorf("leg %s: %w", to, call.ErrNotFound)
		}
		var replaces *dialog.Call
		if err := other.ask(func() error { replaces = other.dialog; return nil }); err != nil || replaces == nil {
			return "", nil, errGone
		}
		r := replaces.Request()
		if replaces.Inbound() {
			return r.Contact.URI, replaces, nil
		}
		return r.To.URI, replaces, nil
	}
	user, place, err := splitTarget(to)
	if err != nil {
		return "", nil, err
	}
	if place != "" && !numberLike(user) {
		return place[:strings.Index(place, ":")+1] + url.PathEscape(user) + place[strings.Index(place, "@"):], nil, nil
	}
	all := s.lines.Load()
	result := s.plan.Route(numbers.Query{Typed: user, Trunks: all.queryTrunks()})
	if err := result.Err(); err != nil {
		return "", nil, err
	}
	// What the plan has decided about is sent, not what was typed: others may read
	// that in another way.
	switch {
	case place != "":
		return place[:strings.Index(place, ":")+1] + url.PathEscape(result.Number) + place[strings.Index(place, "@"):], nil, nil
	case strings.HasPrefix(to, "tel:") && strings.HasPrefix(result.Number, "+"):
		return "tel:" + result.Number, nil, nil
	}
	return "sip:" + result.Number + "@" + trunkHost(trunk, l), nil, nil
}

// splitTarget takes a place to transfer to apart: a number as people write it, a
// "tel:" URI, or a "sip:" or "sips:" URI, of which place is the rest: "sip:@host".
// Passwords, parameters of the user, and header fields are refused: each is a way
// to say something else than the dial plan sees.
func splitTarget(to string) (user, place string, err error) {
	wrong := fmt.Errorf("%q is no place to transfer to: %w", printable(to), call.ErrInvalid)
	if len(to) > 256 || strings.ContainsAny(to, "\r\n<>\"\x00") {
		return "", "", wrong
	}
	scheme, rest, found := strings.Cut(to, ":")
	scheme = strings.ToLower(scheme)
	switch {
	case !found:
		return to, "", nil
	case scheme == "tel":
		return rest, "", nil
	case scheme != "sip" && scheme != "sips":
		return "", "", wrong
	}
	user, host, found := strings.Cut(rest, "@")
	if user, err = url.PathUnescape(user); err != nil {
		return "", "", wrong
	}
	if !found || host == "" || strings.ContainsAny(host, "@? ") || user == "" || strings.ContainsAny(user, ":;@?%/ ") {
		return "", "", wrong
	}
	if strings.Trim(user, asciiGraphic) != "" || strings.Contains(strings.ToLower(host), ";user=phone") && !numberLike(user) {
		return "", "", wrong
	}
	return user, scheme + ":@" + host, nil
}

// asciiGraphic is what the name of somebody on an exchange is made of.
const asciiGraphic = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+*#-_.()!~'&=$,"

// numberLike reports whether an exchange may take a user's name for a number: it
// begins like one, or has nothing else in it.
func numberLike(user string) bool {
	return user != "" && strings.ContainsRune("+0123456789*#(", rune(user[0])) || strings.Trim(user, "+0123456789*#-.()") == ""
}

// trunkHost is the host that a trunk's numbers are at.
func trunkHost(t call.Trunk, l *leg) string {
	for _, target := range t.Targets {
		_, rest, _ := strings.Cut(target, ":")
		rest, _, _ = strings.Cut(rest, ";")
		if _, host, ok := strings.Cut(rest, "@"); ok {
			rest = host
		}
		if rest != "" {
			return rest
		}
	}
	return l.current.Load().Remote().String()
}

// Hold puts a phone on hold, or takes it back: it hears nothing and is not heard.
func (s *Server) Hold(ctx context.Context, id call.LegID, on bool) error {
	l := s.find(id)
	if l == nil {
		return errGone
	}
	if err := l.confirmed(ctx); err != nil {
		return err
	}
	var d *dialog.Call
	var offer []byte
	if err := l.ask(func() (err error) {
		m := l.sound.media.Load()
		if m == nil {
			return errGone
		}
		m.SetHold(on)
		d = l.dialog
		offer, err = m.Offer()
		return err
	}); err != nil {
		return err
	}
	answer, err := d.Offer(ctx, offer)
	if err != nil {
		l.post(func() { // the other side goes on as before, and so do we
			if m := l.sound.media.Load(); m != nil {
				m.SetHold(!on)
			}
		})
		return fmt.Errorf("hold: %w", err)
	}
	return l.ask(func() error {
		m := l.sound.media.Load()
		if m == nil {
			return errGone
		}
		if err := m.Accept(answer, true); err != nil {
			return err
		}
		if l.phone != nil {
			l.phone.SetHold(on || m.RemoteHold())
		}
		l.update(func(now *call.Leg) { now.Held = on || m.RemoteHold() })
		return nil
	})
}
