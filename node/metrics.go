package node

import (
	"slices"
	"strconv"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/web"
)

// metrics returns the numbers of now for /metrics.
func (n *Node) metrics() []web.Metric {
	rooms := n.sfu.Rooms()
	all := []web.Metric{{Name: "rooms", Help: "Media rooms that are open.", Value: float64(len(rooms))}}
	people := map[call.ParticipantKind]int{call.KindStandard: 0, call.KindAgent: 0, call.KindSIP: 0}
	tracks := map[string]int{"audio": 0, "video": 0}
	for _, info := range rooms {
		room, ok := n.sfu.Room(info.Name)
		if !ok {
			continue // it closed just now
		}
		for _, p := range room.Participants() {
			kind := p.Grant.Kind
			if _, known := people[kind]; !known {
				kind = call.KindStandard // tokens may say anything; labels must not
			}
			people[kind]++
			for _, t := range p.Tracks {
				if t.Kind == sfu.KindVideo {
					tracks["video"]++
				} else {
					tracks["audio"]++
				}
			}
		}
	}
	for kind, count := range people {
		all = append(all, web.Metric{Name: "participants", Help: "Participants of all rooms.", Labels: map[string]string{"kind": string(kind)}, Value: float64(count)})
	}
	for kind, count := range tracks {
		all = append(all, web.Metric{Name: "tracks", Help: "Published tracks of all rooms.", Labels: map[string]string{"kind": kind}, Value: float64(count)})
	}
	if n.phones == nil {
		return all
	}
	m := n.phones.Metrics()
	gauge := func(name, help string, value float64, labels map[string]string) {
		all = append(all, web.Metric{Name: name, Help: help, Labels: labels, Value: value})
	}
	counter := func(name, help string, value float64, labels map[string]string) {
		all = append(all, web.Metric{Name: name, Help: help, Kind: web.Counter, Labels: labels, Value: value})
	}
	for key, count := range m.Active {
		gauge("sip_calls_active", "Calls at present.", float64(count), map[string]string{"dir": string(key.Direction), "trunk": key.Trunk})
	}
	for code, count := range m.Responses {
		counter("sip_responses_total", "Final SIP responses, sent and received.", float64(count), map[string]string{"code": strconv.Itoa(code)})
	}
	for step, count := range m.Steps {
		counter("sip_screened_total", "Messages and calls that got no further than this step.", float64(count), map[string]string{"step": step})
	}
	setup := web.Metric{
		Name: "sip_call_setup_seconds", Help: "From the INVITE to its 200.",
		Buckets: make(map[float64]uint64), Count: m.Setup.Count, Sum: m.Setup.Sum,
	}
	sum := uint64(0)
	for i, bound := range m.Setup.Bounds {
		if i < len(m.Setup.Counts) {
			sum += m.Setup.Counts[i]
		}
		setup.Buckets[bound] = sum
	}
	all = append(all, setup)
	counter("sip_bans_total", "Addresses that were shut out.", float64(m.Bans), nil)
	gauge("sip_banned_sources", "Addresses that are shut out at present.", float64(m.Banned), nil)
	counter("sip_dropped_total", "Messages of strangers left without an answer.", float64(m.Dropped), nil)
	counter("sip_pin_wrong_total", "Wrong PINs.", float64(m.PINRejected), nil)
	gauge("sip_minutes_today", "Minutes of calls out today.", m.MinutesToday, nil)
	counter("rtp_lost_total", "RTP packets of phones that did not arrive.", float64(m.Lost), nil)
	worst := 0.0
	for _, jitter := range m.Jitter {
		worst = max(worst, jitter)
	}
	gauge("rtp_jitter_ms", "Jitter of the worst call at present.", worst, nil)
	if lowest := slices.Min(append([]float64{5}, m.MOS...)); len(m.MOS) > 0 {
		gauge("sip_mos", "Estimated MOS of the worst call at present (ITU-T G.107).", lowest, nil)
	}
	counter("dtmf_total", "Keys pressed, by phones and towards them.", float64(m.Digits), nil)
	counter("mix_starved_frames_total", "Frames of speakers that came too late and were concealed.", float64(m.Starved), nil)
	counter("opus_panics_total", "Faults of the Opus codec that were caught.", float64(m.OpusPanics), nil)
	for trunk, up := range m.Registered {
		value := 0.0
		if up {
			value = 1
		}
		gauge("trunk_registered", "1 while the trunk is registered.", value, map[string]string{"trunk": trunk})
	}
	for trunk, ping := range m.Ping {
		gauge("trunk_ping_ms", "Round trip of the last OPTIONS.", ping, map[string]string{"trunk": trunk})
	}
	return all
}
