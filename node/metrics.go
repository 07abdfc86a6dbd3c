package node

import (
	"strconv"

	"github.com/trunkhall/trunkhall/web"
)

// metrics returns the numbers of now for /metrics.
func (n *Node) metrics() []web.Metric {
	rooms := n.sfu.Rooms()
	participants := 0
	for _, r := range rooms {
		participants += r.Participants
	}
	all := []web.Metric{
		{Name: "rooms", Help: "Media rooms that are open.", Value: float64(len(rooms))},
		{Name: "participants", Help: "Participants of all rooms, phones too.", Value: float64(participants)},
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
	counter("sip_dropped_total", "Messages of strangers left without an answer.", float64(m.Dropped), nil)
	counter("sip_pin_wrong_total", "Wrong PINs.", float64(m.PINRejected), nil)
	gauge("sip_minutes_today", "Minutes of calls out today.", m.MinutesToday, nil)
	counter("rtp_lost_total", "RTP packets of phones that did not arrive.", float64(m.Lost), nil)
	worst := 0.0
	for _, jitter := range m.Jitter {
		worst = max(worst, jitter)
	}
	gauge("rtp_jitter_ms", "Jitter of the worst call at present.", worst, nil)
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
