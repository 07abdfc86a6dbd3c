package sfu

import (
	"fmt"
	"slices"

	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

// label is the name of the channel that carries a kind.
func (k DataKind) label() string {
	switch k {
	case DataReliable:
		return "_reliable"
	case DataLossy:
		return "_lossy"
	}
	return "_data_track"
}

// kindOfLabel is label's inverse; ok is false for a channel of another name,
// whose kind follows from its delivery.
func kindOfLabel(dc *webrtc.DataChannel) (k DataKind, ok bool) {
	for _, k := range []DataKind{DataReliable, DataLossy, DataTrack} {
		if dc.Label() == k.label() {
			return k, true
		}
	}
	if dc.MaxRetransmits() != nil || dc.MaxPacketLifeTime() != nil || !dc.Ordered() {
		return DataLossy, false
	}
	return DataReliable, false
}

// onDataChannel is called by the connection for a channel that the client made.
func (p *peer) onDataChannel(dc *webrtc.DataChannel) {
	if p.opened.Add(1) > maxChannels || len(dc.Label()) > 256 {
		_ = dc.Close()
		return
	}
	k, known := kindOfLabel(dc)
	if known && p == p.t.down() {
		p.useChannel(k, dc)
		return
	}
	p.listen(k, known, dc)
}

// useChannel makes dc the downstream channel of its kind.
func (p *peer) useChannel(k DataKind, dc *webrtc.DataChannel) {
	dc.OnOpen(func() {
		p.channels[k].Store(dc)
		p.t.m.emit(EventDataReady{Kind: k})
	})
	p.listen(k, true, dc)
}

func (p *peer) listen(k DataKind, known bool, dc *webrtc.DataChannel) {
	label := dc.Label()
	if known {
		label = ""
	}
	dc.OnMessage(func(msg webrtc.DataChannelMessage) {
		if p.t.dead.Load() {
			return
		}
		if !p.t.allow(len(msg.Data)) {
			return
		}
		p.t.m.emit(EventData{Kind: k, Label: label, Payload: slices.Clone(msg.Data)})
	})
}

// sendData may be called from anywhere.
func (p *peer) sendData(k DataKind, payload []byte) error {
	dc := p.channels[k].Load()
	if dc == nil || dc.ReadyState() != webrtc.DataChannelStateOpen {
		return fmt.Errorf("data channel %s is not open: %w", k.label(), call.ErrUnavailable)
	}
	limit := uint64(maxLossyBytes)
	if k == DataReliable {
		limit = maxBufferedBytes
	}
	if waiting := dc.BufferedAmount(); waiting > limit {
		return fmt.Errorf("%d bytes wait on data channel %s: %w", waiting, k.label(), call.ErrUnavailable)
	}
	if err := dc.Send(payload); err != nil {
		return fmt.Errorf("send on data channel %s: %w", k.label(), err)
	}
	return nil
}
