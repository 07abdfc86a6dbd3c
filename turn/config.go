package turn

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Config is what an operator may choose about the relay.
type Config struct {
	// Enabled turns the relay on.
	Enabled bool `yaml:"enabled"`
	// Port is the UDP and TCP port that clients connect to; 0 takes any free one.
	Port int `yaml:"port"`
	// PublicIPs are told to clients and used for relayed addresses: one IPv4
	// address, one IPv6 address, or both. Empty: what the SFU tells its clients,
	// or else the machine's own address.
	PublicIPs []string `yaml:"public_ips"`
	// RelayPortMin and RelayPortMax bound the UDP ports of relayed addresses;
	// both 0 take any free ones.
	RelayPortMin int `yaml:"relay_port_min"`
	RelayPortMax int `yaml:"relay_port_max"`
	// Secret signs the credentials. The same secret in another TURN server with
	// REST credentials makes it accept them too.
	Secret string `yaml:"secret"`
	// TTL is the lifetime of credentials, and so the longest time for which one
	// relayed address can be kept.
	TTL time.Duration `yaml:"ttl"`
	// UserQuota bounds the relayed addresses of one user at a time. A browser
	// takes one for each of its connections, transports and network interfaces.
	UserQuota int `yaml:"user_quota"`
	// PublicPeers lets clients relay to public unicast addresses, for calls
	// between two of which only one needs a relay.
	PublicPeers bool `yaml:"public_peers"`
}

// DefaultConfig returns the settings of a server whose operator chose nothing.
// Secret is empty: it is generated at the first start.
func DefaultConfig() Config {
	return Config{
		Enabled:      true,
		Port:         3478,
		RelayPortMin: 40000,
		RelayPortMax: 40999,
		TTL:          12 * time.Hour,
		UserQuota:    40,
		PublicPeers:  true,
	}
}

// Validate returns every complaint about c, joined.
func (c Config) Validate() error {
	if !c.Enabled {
		return nil
	}
	var errs []error
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("turn.port: %d is no port", c.Port))
	}
	if _, err := parseIPs(c.PublicIPs); err != nil {
		errs = append(errs, fmt.Errorf("turn.public_ips: %w", err))
	}
	switch lo, hi := c.RelayPortMin, c.RelayPortMax; {
	case lo == 0 && hi == 0:
	case lo < 1024 || hi > 65535:
		errs = append(errs, fmt.Errorf("turn.relay_port_min, turn.relay_port_max: %d-%d is not within 1024-65535", lo, hi))
	case lo > hi:
		errs = append(errs, fmt.Errorf("turn.relay_port_min, turn.relay_port_max: %d-%d is empty", lo, hi))
	case c.Port >= lo && c.Port <= hi:
		errs = append(errs, fmt.Errorf("turn.port: %d is one of the relay ports %d-%d", c.Port, lo, hi))
	}
	if len(c.Secret) < 16 {
		errs = append(errs, errors.New("turn.secret: needs at least 16 characters"))
	}
	if c.TTL < time.Minute || c.TTL > 7*24*time.Hour {
		errs = append(errs, fmt.Errorf("turn.ttl: %s is not between 1m and 168h", c.TTL))
	}
	if c.UserQuota < 1 {
		errs = append(errs, fmt.Errorf("turn.user_quota: %d lets nobody relay", c.UserQuota))
	}
	return errors.Join(errs...)
}

// parseIPs parses at most one IPv4 and one IPv6 address.
func parseIPs(texts []string) ([]netip.Addr, error) {
	var ips []netip.Addr
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address", t)
		}
		if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return nil, fmt.Errorf("%s is no address that a client could be told", t)
		}
		for _, other := range ips {
			if other.Is4() == a.Is4() {
				return nil, fmt.Errorf("%s and %s: one address of each family is enough", other, a)
			}
		}
		ips = append(ips, a)
	}
	return ips, nil
}
