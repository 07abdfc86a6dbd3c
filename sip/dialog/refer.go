package dialog

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// referState is the subscriptions that REFER makes (RFC 3515): theirs, of calls
// that they asked us to make, and ours. A subscription is named by the CSeq of
// its REFER.
type referState struct {
	theirs map[int]*time.Timer
	ours   map[int]bool
}

// referPatience is how long the result of a REFER may take.
const referPatience = 3 * time.Minute

// referCame takes a REFER inside the dialog. It is told to the gateway and dials
// nothing by itself.
func (c *Call) referCame(t *serverTx) {
	m := t.req
	to, ok := parseNameAddr(m.get("Refer-To"))
	if !ok || len(m.all("Refer-To")) != 1 {
		t.respond(c.e.answer(t, 400, "Malformed Refer-To"))
		return
	}
	target, repl, method := referTo(to.uri)
	if method != "INVITE" || checkURI(target) != nil {
		t.respond(c.e.answer(t, 603, "Decline"))
		return
	}
	if st := c.State(); st != Talking || len(c.refers.theirs) >= 4 {
		t.respond(c.e.answer(t, 491, "Request Pending"))
		return
	}
	id := int(m.seq)
	quiet := strings.EqualFold(m.get("Refer-Sub"), "false") // RFC 4488
	hs := []Header{{"Contact", c.contact}}
	if quiet {
		hs = append(hs, Header{"Refer-Sub", "false"})
	}
	t.respond(c.e.answer(t, 202, "Accepted", hs...))
	if !quiet {
		if c.refers.theirs == nil {
			c.refers.theirs = map[int]*time.Timer{}
		}
		c.refers.theirs[id] = c.after(referPatience, func() { c.referResult(id, 503, "") })
		c.notify(id, 100, "Trying", false)
	}
	ev := Referred{ID: id, To: to.address(), Replaces: repl}
	ev.To.URI = target
	if by, ok := parseNameAddr(m.get("Referred-By")); ok {
		ev.ReferredBy = by.address()
	}
	if rep, ok := parseReplaces(repl); ok {
		// The dialog as the third party has it: its tags are seen from there.
		for _, call := range c.e.Calls() {
			if call.callID == rep.callID && call != c && (call.localTag == rep.toTag || call.localTag == rep.fromTag) {
				ev.Call = call
			}
		}
	}
	c.tell(ev)
}

// ReferResult reports a state of the call that a Referred asked for: 100, 180,
// 200, 486. One of 200 or more is the last.
func (c *Call) ReferResult(id, code int, reason string) error {
	return c.do(func() error {
		if c.over {
			return errOver
		}
		c.referResult(id, code, reason)
		return nil
	})
}

func (c *Call) referResult(id, code int, reason string) {
	t, ok := c.refers.theirs[id]
	if !ok || c.over {
		return
	}
	if reason == "" {
		reason = phrase(code)
	}
	if code >= 200 {
		stopTimer(t)
		delete(c.refers.theirs, id)
	}
	c.notify(id, code, reason, code >= 200)
}

// notify sends the state of a call as a sipfrag (RFC 3515 §2.4.4, RFC 3420).
func (c *Call) notify(id, code int, reason string, last bool) {
	state := "active;expires=180"
	if last {
		state = "terminated;reason=noresource"
	}
	hs := []Header{{"Event", "refer;id=" + strconv.Itoa(id)}, {"Subscription-State", state}}
	body := fmt.Sprintf("SIP/2.0 %d %s\r\n", code, oneLine(reason))
	c.request("NOTIFY", hs, "message/sipfrag;version=2.0", []byte(body), func(res *message, err error) {
		if err == nil && res.code == 481 { // they do not want to know
			stopTimer(c.refers.theirs[id])
			delete(c.refers.theirs, id)
		}
	})
}

// Refer asks the other side to call to. replaces, if not nil, makes it an
// attended transfer: the other side takes that call's place at its other side.
// It returns when the REFER is accepted; ReferProgress events follow.
func (c *Call) Refer(ctx context.Context, to string, replaces *Call, h ...Header) error {
	if replaces != nil {
		d := replaces.Dialog()
		if d == "" {
			return errors.New("the call to be replaced has no dialog")
		}
		if to == "" {
			to = replaces.remoteTarget()
		}
		to += "?Replaces=" + strings.ReplaceAll(url.QueryEscape(d), "+", "%20")
	}
	if !validURI(to) {
		return errors.New("refer: no SIP URI")
	}
	for _, hf := range h {
		if err := cleanHeader(hf); err != nil {
			return err
		}
	}
	return c.await(ctx, func(report func(error)) {
		if c.over || c.State() != Talking {
			report(errors.New("the call has not been answered"))
			return
		}
		if c.peerAllows != nil && !c.peerAllows["REFER"] {
			report(&Refused{405, "the other side does not take REFER"})
			return
		}
		by := c.contact
		hs := append([]Header{{"Refer-To", "<" + to + ">"}, {"Referred-By", by}}, h...)
		// With a digest it goes out twice; the subscription has the last CSeq.
		if c.refers.ours == nil {
			c.refers.ours = map[int]bool{}
		}
		c.request("REFER", hs, "", nil, func(res *message, err error) {
			switch {
			case err != nil:
				report(err)
			case res.code >= 300:
				report(&Refused{res.code, plain(res.reason)})
			default:
				id := int(res.seq)
				if _, told := c.refers.ours[id]; !told && !strings.EqualFold(res.get("Refer-Sub"), "false") {
					c.refers.ours[id] = true
				}
				report(nil)
			}
		})
		c.refers.ours[int(c.localSeq)] = true // a NOTIFY may be faster than the 202
	})
}

// remoteTarget is where the other side can be called.
func (c *Call) remoteTarget() (uri string) {
	_ = c.do(func() error {
		uri, _, _ = strings.Cut(c.target, "?")
		return nil
	})
	return uri
}

// notifyCame takes a NOTIFY, which only a REFER of ours makes welcome.
func (c *Call) notifyCame(t *serverTx) {
	m := t.req
	event, rest, _ := strings.Cut(m.get("Event"), ";")
	if !strings.EqualFold(strings.TrimSpace(event), "refer") || len(c.refers.ours) == 0 {
		t.respond(c.e.answer(t, 481, "Subscription Does Not Exist"))
		return
	}
	id := 0
	if ps, ok := parseParams(";"+rest, false); ok {
		if v, has := ps.get("id"); has {
			id, _ = strconv.Atoi(v)
		}
	}
	if id != 0 && !c.refers.ours[id] {
		t.respond(c.e.answer(t, 481, "Subscription Does Not Exist"))
		return
	}
	t.respond(c.e.answer(t, 200, "OK"))
	code, why := 0, ""
	if strings.HasPrefix(mediaType(m.get("Content-Type")), "message/sipfrag") {
		code, why = sipfrag(m.body)
	}
	state, _, _ := strings.Cut(m.get("Subscription-State"), ";")
	if strings.EqualFold(strings.TrimSpace(state), "terminated") || code >= 200 {
		if code < 200 {
			code, why = 503, "the transfer was given up"
		}
		if id != 0 {
			delete(c.refers.ours, id)
		} else {
			clear(c.refers.ours)
		}
	}
	if code > 0 {
		c.tell(ReferProgress{Code: code, Reason: why})
	}
}

// sipfrag reads the status line of a message/sipfrag (RFC 3420).
func sipfrag(body []byte) (code int, reason string) {
	line, _, _ := strings.Cut(string(body), "\n")
	rest, ok := cutPrefixFold(strings.TrimSpace(line), "SIP/2.0 ")
	if !ok {
		return 0, ""
	}
	number, reason, _ := strings.Cut(rest, " ")
	n, err := strconv.Atoi(number)
	if err != nil || n < 100 || n > 699 {
		return 0, ""
	}
	return n, plain(reason)
}
