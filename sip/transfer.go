package sip

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	if strings.ContainsAny(to, "\r\n<> \"") && !strings.HasPrefix(to, "+") {
		return "", nil, fmt.Errorf("%q is no place to transfer to: %w", printable(to), call.ErrInvalid)
	}
	user, host := to, ""
	switch scheme, rest, ok := strings.Cut(to, ":"); {
	case !ok:
	case scheme == "tel":
		user, _, _ = strings.Cut(rest, ";")
	case scheme == "sip" || scheme == "sips":
		rest, _, _ = strings.Cut(rest, ";")
		user, host, ok = strings.Cut(rest, "@")
		if !ok {
			return "", nil, fmt.Errorf("%q names nobody: %w", printable(to), call.ErrInvalid)
		}
	default:
		return "", nil, fmt.Errorf("%q is no place to transfer to: %w", printable(to), call.ErrInvalid)
	}
	if strings.Trim(user, "+0123456789*#-.() ") != "" {
		return to, nil, nil // a name, not a number
	}
	all := s.lines.Load()
	result := s.plan.Route(numbers.Query{Typed: user, Trunks: all.queryTrunks()})
	if err := result.Err(); err != nil {
		return "", nil, err
	}
	if host != "" || strings.HasPrefix(to, "tel:") {
		return to, nil, nil
	}
	return "sip:" + result.Number + "@" + trunkHost(trunk, l), nil, nil
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
	return l.dialog.Remote().String()
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
