// Package config reads trunkhall.yaml and the TRUNKHALL_ environment variables
// into the Config types of the parts. The environment wins over the file, the
// file over the defaults. What is not known is an error, and all complaints come
// at once.
package config

import (
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/signaling"
	"github.com/trunkhall/trunkhall/sip"
	"github.com/trunkhall/trunkhall/turn"
	"github.com/trunkhall/trunkhall/web"
)

// DefaultFile is the documented default configuration. It decodes to exactly
// Default() and mentions every setting.
//
//go:embed trunkhall.yaml
var DefaultFile string

// Config is everything an operator may choose.
type Config struct {
	// DataDir holds the database, the uploaded media and the generated secrets.
	DataDir string `yaml:"data_dir"`
	// PublicURL is how browsers reach the HTTP port, without a trailing slash;
	// empty means at the address of the listener.
	PublicURL  string            `yaml:"public_url"`
	Log        Log               `yaml:"log"`
	Web        web.Config        `yaml:"web"`
	Homeserver homeserver.Config `yaml:"homeserver"`
	Signaling  signaling.Config  `yaml:"signaling"`
	SFU        sfu.Config        `yaml:"sfu"`
	TURN       turn.Config       `yaml:"turn"`
	SIP        sip.Config        `yaml:"sip"`
}

// Log says what is logged and how, on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// Default returns the settings that apply where file and environment are silent.
func Default() Config {
	return Config{
		DataDir:    "./trunkhall-data",
		Log:        Log{Level: "info", Format: "text"},
		Web:        web.DefaultConfig(),
		Homeserver: homeserver.DefaultConfig(),
		Signaling:  signaling.DefaultConfig(),
		SFU:        sfu.DefaultConfig(),
		TURN:       turn.DefaultConfig(),
		SIP:        sip.DefaultConfig(),
	}
}

// secrets are the settings that may also be given as NAME_file, the path of a
// file that holds the value. A list is one value a line.
var secrets = []string{
	"web.metrics_token",
	"homeserver.registration_tokens",
	"homeserver.registration_shared_secret",
	"signaling.api_key",
	"signaling.api_secret",
	"turn.secret",
}

// listSecrets are secrets inside lists of sections: the setting that is the list,
// and below each of its elements the secret, which may be given as NAME_file too.
var listSecrets = map[string][]string{
	"sip.trunks":   {"auth.password"},
	"sip.rooms":    {"pin"},
	"sip.dispatch": {"action.pin"},
}

// SlogLevel returns the level for log/slog.
func (l Log) SlogLevel() (slog.Level, error) {
	var level slog.Level
	err := level.UnmarshalText([]byte(l.Level))
	return level, err
}

// Validate returns all complaints of all parts, each named by its YAML path.
// Empty secrets are no complaint: they are generated at the first start.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data_dir: needed"))
	}
	if err := validatePublicURL(c.PublicURL); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.Log.SlogLevel(); err != nil {
		errs = append(errs, fmt.Errorf("log.level: %q is none of debug, info, warn, error", c.Log.Level))
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		errs = append(errs, fmt.Errorf("log.format: %q is none of text, json", c.Log.Format))
	}
	c = c.withSecrets()
	errs = append(errs,
		c.Web.Validate(),
		c.Homeserver.Validate(),
		c.Signaling.Validate(),
		c.SFU.Validate(),
		c.TURN.Validate(),
		c.SIP.Validate(),
		c.overlaps(),
	)
	return errors.Join(errs...)
}

// withSecrets fills in for secrets that will be generated, so that the parts,
// which need some, have nothing to complain of.
func (c Config) withSecrets() Config {
	placeholder := strings.Repeat("generated", 8)
	for _, secret := range []*string{&c.Signaling.APIKey, &c.Signaling.APISecret, &c.TURN.Secret} {
		if *secret == "" {
			*secret = placeholder
		}
	}
	return c
}

func validatePublicURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.User != nil, u.RawQuery != "", u.Fragment != "":
		return fmt.Errorf("public_url: %q is not like https://calls.example.org", text)
	case strings.HasSuffix(text, "/"):
		// Clients put paths behind it and compare the result as text.
		return fmt.Errorf("public_url: %q must not end with a slash", text)
	case u.Path != "":
		return fmt.Errorf("public_url: %q has a path; Matrix needs the root of a host", text)
	}
	return nil
}

// A portUse is one port of one protocol that a setting takes.
type portUse struct {
	setting     string
	tcp, udp    bool
	first, last int
}

// overlaps complains of two settings that take the same port. Port 0 takes any
// free one.
func (c Config) overlaps() error {
	var uses []portUse
	if _, port, err := net.SplitHostPort(c.Web.Listen); err == nil {
		if n, err := strconv.Atoi(port); err == nil && n > 0 {
			uses = append(uses, portUse{"web.listen", true, false, n, n})
		}
	}
	if p := c.SFU.UDPPort; p > 0 {
		uses = append(uses, portUse{"sfu.udp_port", false, true, p, p})
	}
	if p := c.SFU.TCPPort; p > 0 {
		uses = append(uses, portUse{"sfu.tcp_port", true, false, p, p})
	}
	if c.TURN.Enabled {
		if p := c.TURN.Port; p > 0 {
			uses = append(uses, portUse{"turn.port", true, true, p, p})
		}
		if c.TURN.RelayPortMin > 0 {
			uses = append(uses, portUse{"turn.relay_port_min to turn.relay_port_max", false, true, c.TURN.RelayPortMin, c.TURN.RelayPortMax})
		}
	}
	uses = append(uses, c.sipUses()...)
	var errs []error
	for i, a := range uses {
		for _, b := range uses[:i] {
			sameKind := a.tcp && b.tcp || a.udp && b.udp
			if sameKind && a.first <= b.last && b.first <= a.last {
				errs = append(errs, fmt.Errorf("%s: takes port %d, which %s takes too", a.setting, max(a.first, b.first), b.setting))
			}
		}
	}
	return errors.Join(errs...)
}

// sipUses are the ports of the telephone gateway, if it is on.
func (c Config) sipUses() []portUse {
	if !c.SIP.On() {
		return nil
	}
	var uses []portUse
	for i, l := range c.SIP.Listen {
		u, err := url.Parse(l)
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(u.Port()); err == nil && n > 0 {
			udp := u.Scheme == "udp"
			uses = append(uses, portUse{fmt.Sprintf("sip.listen[%d]", i), !udp, udp, n, n})
		}
	}
	if first, last := c.SIP.Ports(); first > 0 {
		uses = append(uses, portUse{"sip.rtp_ports", false, true, first, last})
	}
	return uses
}
