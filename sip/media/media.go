// Package media is the sound side of one telephone leg: it makes and reads session
// descriptions (SDP, RFC 3264) and sends and receives RTP. It knows no SIP and no room.
//
// A Pool owns the RTP ports. Open takes two of them and gives a Session, which has
// three sides:
//
//   - the dialog's: Offer, Answer, Accept, SetHold, Start, Close;
//   - the sound's: Read and Write, one frame of 20 ms each, called from one goroutine
//     that has a ticker (the bridge, the spoken menu);
//   - what the telephone does: Events.
//
// All methods may be called at any time and from any goroutine, but Read and Write
// only from one at a time.
package media

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

// ErrNotAcceptable means that an offer or an answer is well-formed but nothing here
// can speak with it: no common codec, encryption missing or broken, no usable
// address. SIP says 488 (Not Acceptable Here) to an offer. Malformed descriptions
// give call.ErrInvalid instead, for which SIP says 400.
var ErrNotAcceptable = fmt.Errorf("media not acceptable: %w", call.ErrUnavailable)

// ErrNoPorts means that all RTP ports are in use.
var ErrNoPorts = fmt.Errorf("no RTP port free: %w", call.ErrUnavailable)

// ErrClosed means that the session or its pool has been closed.
var ErrClosed = errors.New("media: closed")

// Policies of SRTP (RFC 3711).
const (
	SRTPOff      = "off"      // never; an offer that demands it is not acceptable
	SRTPOptional = "optional" // if the other side wants it (RFC 8643 in our offers)
	SRTPRequire  = "require"  // an offer without it is not acceptable
)

// How SRTP gets its keys.
const (
	KeyingSDES = "sdes" // RFC 4568: in the description itself
	KeyingDTLS = "dtls" // RFC 5763
)

// How digits travel.
const (
	DTMFEvents = "rfc4733" // as telephone events; in the sound if the other side knows none
	DTMFInband = "inband"  // in the sound
	DTMFInfo   = "info"    // by SIP INFO, which is not this package's
)

// Why a session is over, for Events.Timeout.
const (
	NoMedia     = "no media"      // nothing came within 30 s of the answer
	MediaGone   = "media gone"    // nothing came for 60 s
	HeldTooLong = "held too long" // nothing came for 30 minutes of hold
	Flooded     = "media flood"   // far more packets than a call has, for seconds
	NoKeys      = "no DTLS keys"  // the DTLS handshake failed
)

// Config says where RTP is. It is the operator's, the same for all sessions.
type Config struct {
	BindIP      netip.Addr    // zero: all addresses
	ExternalIP  netip.Addr    // IPv4 for our descriptions; zero: that of this machine towards the other side
	ExternalIP6 netip.Addr    // the same for IPv6
	PortMin     uint16        // RTP takes even ports, RTCP the odd ones after them
	PortMax     uint16        //
	Drain       time.Duration // how long a closed port is not used again
}

// DefaultConfig returns the usual settings.
func DefaultConfig() Config {
	return Config{PortMin: 30000, PortMax: 30999, Drain: 30 * time.Second}
}

// Validate says everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	if c.PortMin < 1024 || c.PortMax < c.PortMin || c.PortMax-c.PortMin+c.PortMin%2 < 1 {
		errs = append(errs, fmt.Errorf("sip.rtp_ports: %d-%d has no even port from 1024 on with an odd one after it", c.PortMin, c.PortMax))
	}
	if c.ExternalIP.IsValid() && !c.ExternalIP.Unmap().Is4() {
		errs = append(errs, fmt.Errorf("sip.external_ip: %s is no IPv4 address", c.ExternalIP))
	}
	if c.ExternalIP6.IsValid() && !c.ExternalIP6.Is6() {
		errs = append(errs, fmt.Errorf("sip.external_ip6: %s is no IPv6 address", c.ExternalIP6))
	}
	if c.Drain < 0 {
		errs = append(errs, fmt.Errorf("media: ports cannot drain for %s", c.Drain))
	}
	return errors.Join(errs...)
}

// Options are one leg's.
type Options struct {
	Codecs []audio.Codec // in order of preference; none: PCMU, PCMA, G722, Opus
	SRTP   string        // SRTPOff (also if empty), SRTPOptional, SRTPRequire
	Keying string        // for our offers: KeyingSDES (also if empty), KeyingDTLS. Answers take what is offered
	DTMF   string        // DTMFEvents (also if empty), DTMFInband, DTMFInfo
	// ExternalIP is our address in descriptions, instead of the Config's.
	ExternalIP netip.Addr
	// Sources are the networks that may send us media besides the very address in
	// the other side's description: the source of its signalling, and the trunk's
	// networks. A description with a private or loopback address that is not among
	// them is believed only once packets have come from there, and only if a source
	// is of the same kind.
	Sources []netip.Prefix
	Events  Events
}

// Events are called from goroutines of the session, never while one of its methods
// holds anything: they may call it back, but must not block, and so not call Close,
// which waits for those goroutines. Each may be nil.
type Events struct {
	// Digit is called once for each digit pressed. how is DTMFEvents or DTMFInband.
	Digit func(digit byte, how string)
	// Timeout is called at most once, when the media side is over. why is one of
	// the reasons of this package. The session stays open until Close.
	Timeout func(why string)
	// Media is called once, when the first packet is accepted.
	Media func()
}

// PoolStats says how the ports are used, in pairs.
type PoolStats struct {
	Open, Draining, Free int
}
