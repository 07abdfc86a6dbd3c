package signaling

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

// The service's messages have many fields that only LiveKit's own SIP service or
// its cloud can honour. Those are refused, one by one and by name: a setting that
// is taken and has no effect is worse than an error.

// sipPrefix starts the names of the methods of LiveKit's SIP service.
const sipPrefix = "livekit.SIP/"

// The prefixes of identifiers, as LiveKit spells them.
const (
	sipTrunkPrefix = "ST_"
	sipRulePrefix  = "SDR_"
)

// sipService lists the methods of LiveKit's SIP service. They need the grant
// sip.admin; dialling and transferring need sip.call.
func (s *Server) sipService() map[string]twirpMethod {
	return map[string]twirpMethod{
		sipPrefix + "CreateSIPInboundTrunk":  method(sipAdmin(s.createSIPInboundTrunk)),
		sipPrefix + "CreateSIPOutboundTrunk": method(sipAdmin(s.createSIPOutboundTrunk)),
		sipPrefix + "UpdateSIPInboundTrunk":  method(sipAdmin(s.updateSIPInboundTrunk)),
		sipPrefix + "UpdateSIPOutboundTrunk": method(sipAdmin(s.updateSIPOutboundTrunk)),
		sipPrefix + "GetSIPInboundTrunk":     method(sipAdmin(s.getSIPInboundTrunk)),
		sipPrefix + "GetSIPOutboundTrunk":    method(sipAdmin(s.getSIPOutboundTrunk)),
		sipPrefix + "ListSIPTrunk":           method(sipAdmin(s.listSIPTrunk)),
		sipPrefix + "ListSIPInboundTrunk":    method(sipAdmin(s.listSIPInboundTrunk)),
		sipPrefix + "ListSIPOutboundTrunk":   method(sipAdmin(s.listSIPOutboundTrunk)),
		sipPrefix + "DeleteSIPTrunk":         method(sipAdmin(s.deleteSIPTrunk)),
		sipPrefix + "CreateSIPDispatchRule":  method(sipAdmin(s.createSIPDispatchRule)),
		sipPrefix + "UpdateSIPDispatchRule":  method(sipAdmin(s.updateSIPDispatchRule)),
		sipPrefix + "ListSIPDispatchRule":    method(sipAdmin(s.listSIPDispatchRule)),
		sipPrefix + "DeleteSIPDispatchRule":  method(sipAdmin(s.deleteSIPDispatchRule)),
		sipPrefix + "CreateSIPParticipant":   method(s.createSIPParticipant),
		sipPrefix + "TransferSIPParticipant": method(s.transferSIPParticipant),
	}
}

// sipAdmin lets only those pass whose token administers telephones.
func sipAdmin[Q, R any](serve func(context.Context, Q) (R, error)) func(context.Context, *claims, Q) (R, error) {
	return func(ctx context.Context, c *claims, request Q) (R, error) {
		if c.SIP == nil || !c.SIP.Admin {
			var none R
			return none, errDenied
		}
		return serve(ctx, request)
	}
}

// mayCallPhones checks the caller's right to spend money.
func mayCallPhones(c *claims) error {
	if c.SIP == nil || !c.SIP.Call {
		return errDenied
	}
	return nil
}

// newSIPID returns a fresh identifier.
func newSIPID(prefix string) string { return prefix + rand.Text()[:16] }

// invalid is a refusal that says why.
func invalid(format string, args ...any) error {
	return &twirpError{code: twirpInvalidArgument, text: fmt.Sprintf(format, args...)}
}

// A field is part of a request, and whether it asks for anything.
type field struct {
	name string
	set  bool
	why  string // why it cannot be had; empty: nothing like it is here
}

// refuseFields returns an error that names every field of those that is set.
func refuseFields(fields ...field) error {
	var complaints []string
	for _, f := range fields {
		switch {
		case f.set && f.why != "":
			complaints = append(complaints, f.name+": "+f.why)
		case f.set:
			complaints = append(complaints, f.name+": not supported by this server")
		}
	}
	if len(complaints) == 0 {
		return nil
	}
	return invalid("%s", strings.Join(complaints, "; "))
}

const noHeaderMapping = "headers are not mapped to attributes here"

// gatewayError makes of a gateway's error what SDKs expect. The gateway's
// complaints about trunks and rules are for the caller, who administers them.
func gatewayError(err error) error {
	switch {
	case errors.Is(err, call.ErrInvalid):
		return invalid("%s", err)
	case errors.Is(err, call.ErrConflict):
		return &twirpError{code: twirpFailedPrecondition, text: err.Error()}
	}
	return err
}

// sipCodecs are the names of the codecs that trunks can have, by LiveKit's names
// in lower case. G.722 is written with a clock rate of 8000 (RFC 3551 §4.5.2) but
// samples at 16000: both are taken.
var sipCodecs = map[string]struct {
	name  string
	rates []uint32
}{
	"pcmu": {"PCMU", []uint32{8000}},
	"pcma": {"PCMA", []uint32{8000}},
	"g722": {"G722", []uint32{8000, 16000}},
	"opus": {"opus", []uint32{48000}},
}

// readMedia takes a trunk's codecs and encryption from a media setting.
func readMedia(t *call.Trunk, m *livekit.SIPMediaConfig) error {
	t.Codecs, t.SRTP = nil, ""
	if m == nil {
		return nil
	}
	if m.Encryption != nil {
		switch m.GetEncryption() {
		case livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_DISABLE:
			t.SRTP = "off"
		case livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_ALLOW:
			t.SRTP = "optional"
		case livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_REQUIRE:
			t.SRTP = "require"
		default:
			return invalid("media.encryption: unknown value %d", m.GetEncryption())
		}
	}
	for _, c := range m.GetCodecs() {
		known, ok := sipCodecs[strings.ToLower(c.GetName())]
		if !ok || c.GetRate() != 0 && !slices.Contains(known.rates, c.GetRate()) {
			return invalid("media.codecs: %s/%d is none of PCMU/8000, PCMA/8000, G722/8000, opus/48000", c.GetName(), c.GetRate())
		}
		t.Codecs = append(t.Codecs, known.name)
	}
	return refuseFields(
		field{"media.codecs without only_listed_codecs", len(t.Codecs) > 0 && !m.GetOnlyListedCodecs(), "every codec of this server is on by default: there is none to add"},
		field{"media.only_listed_codecs without media.codecs", m.GetOnlyListedCodecs() && len(t.Codecs) == 0, "no codec would be left"},
		field{"media.media_timeout", m.GetMediaTimeout().AsDuration() != 0, "set for all trunks by sip.limits in the configuration"},
		field{"media.drop_audio_during_dtmf", m.GetDropAudioDuringDtmf(), ""},
	)
}

// writeMedia is the reverse of readMedia.
func writeMedia(t call.Trunk) *livekit.SIPMediaConfig {
	m := &livekit.SIPMediaConfig{OnlyListedCodecs: len(t.Codecs) > 0}
	for _, name := range t.Codecs {
		if c, ok := sipCodecs[strings.ToLower(name)]; ok {
			m.Codecs = append(m.Codecs, &livekit.SIPCodec{Name: c.name, Rate: c.rates[0]})
		}
	}
	var e livekit.SIPMediaEncryption
	switch t.SRTP {
	case "off":
		e = livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_DISABLE
	case "optional":
		e = livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_ALLOW
	case "require":
		e = livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_REQUIRE
	default:
		return m
	}
	m.Encryption = &e
	return m
}
