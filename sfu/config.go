package sfu

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Config is what an operator may choose about the SFU. The yaml names are the
// keys of the "sfu" section of the configuration file.
type Config struct {
	// UDPPort carries the media of every member; 0 takes any free port.
	UDPPort int `yaml:"udp_port"`
	// TCPPort accepts ICE-TCP (RFC 6544, passive); 0 takes any free port, -1
	// turns ICE-TCP off.
	TCPPort int `yaml:"tcp_port"`
	// BindAddresses are the local addresses to listen on. Empty means every
	// address of every interface.
	BindAddresses []string `yaml:"bind_addresses"`
	// NodeIPs are advertised to clients instead of the local addresses, for a
	// machine behind 1:1 NAT.
	NodeIPs []string `yaml:"node_ips"`
	// Loopback also advertises 127.0.0.1 and ::1, for calls on one machine.
	Loopback bool `yaml:"loopback"`
	// ICELite lets clients do all connectivity checks (RFC 8445 section 2.5).
	// Firefox always gets full ICE.
	ICELite bool `yaml:"ice_lite"`
	// MaxParticipants bounds every room that does not say otherwise; 0 means
	// no bound.
	MaxParticipants int `yaml:"max_participants"`
	// MaxTracks bounds the tracks that one member may publish.
	MaxTracks int `yaml:"max_tracks"`
	// AudioHold is how long a packet of sound may wait for others to the same
	// client, so that they cost one send together; 0 to 20 ms. Pictures wait
	// for a millisecond at most.
	AudioHold time.Duration `yaml:"audio_hold"`
}

// DefaultConfig returns the settings of a configuration file that says nothing.
func DefaultConfig() Config {
	return Config{UDPPort: 7882, TCPPort: 7881, ICELite: true, MaxTracks: 32, AudioHold: 5 * time.Millisecond}
}

// Validate reports everything that is wrong, each complaint named by its key.
func (c Config) Validate() error {
	var errs []error
	if c.UDPPort < 0 || c.UDPPort > 65535 {
		errs = append(errs, fmt.Errorf("sfu.udp_port: %d is not a port", c.UDPPort))
	}
	if c.TCPPort < -1 || c.TCPPort > 65535 {
		errs = append(errs, fmt.Errorf("sfu.tcp_port: %d is neither a port nor -1", c.TCPPort))
	}
	for _, a := range c.BindAddresses {
		if _, err := netip.ParseAddr(a); err != nil {
			errs = append(errs, fmt.Errorf("sfu.bind_addresses: %q is not an IP address", a))
		}
	}
	for _, a := range c.NodeIPs {
		ip, err := netip.ParseAddr(a)
		if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
			errs = append(errs, fmt.Errorf("sfu.node_ips: %q is not an address clients can reach", a))
		}
	}
	if c.MaxParticipants < 0 {
		errs = append(errs, fmt.Errorf("sfu.max_participants: %d is negative", c.MaxParticipants))
	}
	if c.MaxTracks < 1 {
		errs = append(errs, fmt.Errorf("sfu.max_tracks: %d leaves nobody a track; at least 1", c.MaxTracks))
	}
	if c.AudioHold < 0 || c.AudioHold > 20*time.Millisecond {
		errs = append(errs, fmt.Errorf("sfu.audio_hold: %s is not between 0s and 20ms", c.AudioHold))
	}
	return errors.Join(errs...)
}

// Deps are what the SFU needs from its surroundings.
type Deps struct {
	Log *slog.Logger // nil discards
}
