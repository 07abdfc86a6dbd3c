// Package ledger keeps call detail records: what the operator is billed for and
// who made the call. They are lines of JSON in a file that only the server's
// user can read, with telephone numbers in full.
//
// A leg that begins is noted in a journal beside the file. If the server dies,
// the next start writes the records of the calls that were open then.
package ledger

import (
	"slices"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// Config says where and how much.
type Config struct {
	Dir     string // made if it is not there, mode 0700
	MaxSize int64  // of one file; the next begins then. 0: 16 MiB
	Keep    int    // how many earlier files are kept. 0: 20
	Recent  int    // how many records are kept in memory for the API. 0: 1000
}

// A Record is one call, as it ended.
type Record struct {
	ID        string         `json:"id"`
	Direction call.Direction `json:"dir"`
	Trunk     string         `json:"trunk,omitempty"`
	From      string         `json:"from,omitempty"`
	To        string         `json:"to,omitempty"`
	Name      string         `json:"name,omitempty"`
	Room      string         `json:"room,omitempty"`
	RoomID    string         `json:"room_id,omitempty"`
	MXID      string         `json:"mxid,omitempty"` // who dialled: Matrix user ID or API key
	SIPCallID string         `json:"sip_call_id,omitempty"`
	Start     time.Time      `json:"start"`
	Ring      time.Time      `json:"ring,omitzero"`
	Answer    time.Time      `json:"answer,omitzero"`
	End       time.Time      `json:"end"`
	Seconds   float64        `json:"seconds"` // from the answer to the end
	Codec     string         `json:"codec,omitempty"`
	SRTP      string         `json:"srtp,omitempty"`
	Cause     call.Cause     `json:"cause"`
	Text      string         `json:"text,omitempty"`
	Code      int            `json:"code,omitempty"` // final SIP status
	Q850      int            `json:"q850,omitempty"`
	Packets   uint64         `json:"packets,omitempty"`
	Lost      uint64         `json:"lost"`
	JitterMS  float64        `json:"jitter_ms"`
	RTTMS     float64        `json:"rtt_ms,omitempty"`
	MOS       float64        `json:"mos_est,omitempty"`
	E2EE      bool           `json:"e2ee"`
	Crashed   bool           `json:"crashed,omitempty"` // the server died during the call; End is the last time it was seen
}

// FromLeg makes the record of a leg.
func FromLeg(l call.Leg) Record {
	r := Record{
		ID: string(l.ID), Direction: l.Direction, Trunk: l.Trunk,
		From: l.Number, To: l.Local, Name: l.Name,
		Room: string(l.Room), RoomID: l.RoomID, MXID: l.By, SIPCallID: l.SIPCallID,
		Start: l.Created, Ring: l.Ringing, Answer: l.Answered, End: l.Ended,
		Codec: l.Codec, SRTP: l.SRTP, Cause: l.Cause, Text: l.Text, Code: l.Code, Q850: l.Q850,
		Packets: l.Stats.Packets, Lost: l.Stats.Lost, JitterMS: ms(l.Stats.Jitter), RTTMS: ms(l.Stats.RTT),
		MOS: l.Stats.MOS, E2EE: l.Encrypted,
	}
	if l.Direction == call.Outbound {
		r.From, r.To = l.Local, l.Number
	}
	if !l.Answered.IsZero() && l.Ended.After(l.Answered) {
		r.Seconds = l.Ended.Sub(l.Answered).Seconds()
	}
	return r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// A Filter picks records. Empty fields match all.
type Filter struct {
	Limit     int // at most so many, the latest first; 0: 100
	Trunk     string
	Direction call.Direction
	MXID      string
	RoomID    string
	Number    string // theirs or ours, whole
	Cause     call.Cause
	Since     time.Time // ended at or after
	Before    time.Time // ended before
}

func (f Filter) match(r *Record) bool {
	return (f.Trunk == "" || f.Trunk == r.Trunk) &&
		(f.Direction == "" || f.Direction == r.Direction) &&
		(f.MXID == "" || f.MXID == r.MXID) &&
		(f.RoomID == "" || f.RoomID == r.RoomID) &&
		(f.Number == "" || f.Number == r.From || f.Number == r.To) &&
		(f.Cause == call.CauseNone || f.Cause == r.Cause) &&
		(f.Since.IsZero() || !r.End.Before(f.Since)) &&
		(f.Before.IsZero() || r.End.Before(f.Before))
}

// pick returns the records that match, the latest first.
func (f Filter) pick(all []Record) []Record {
	limit := f.Limit
	if limit <= 0 {
		limit = 100
	}
	var found []Record
	for i := range slices.Backward(all) {
		if len(found) == limit {
			break
		}
		if f.match(&all[i]) {
			found = append(found, all[i])
		}
	}
	return found
}
