package phones

import (
	_ "embed"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// kamailioConfig is the configuration of a small provider: registrar, digest for
// REGISTER and INVITE, Record-Route.
//
//go:embed kamailio.cfg
var kamailioConfig string

// The one account that a provider has, and what it is asked for.
const (
	providerRealm    = "trunk.test"
	providerPassword = "secret"
)

// A Provider is one running Kamailio: a registrar and proxy in the realm
// trunk.test that asks everybody for the password "secret".
type Provider struct {
	*program
	t    testing.TB
	dir  string
	addr netip.AddrPort
}

// StartProvider starts a provider at ip, which runs until the test ends.
func StartProvider(t testing.TB, ip string) *Provider {
	t.Helper()
	p := &Provider{t: t, dir: t.TempDir(), addr: netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(FreePort(t, ip)))}
	file(t, p.dir, "kamailio.cfg", strings.NewReplacer("LISTEN", p.addr.String(), "REALM", providerRealm, "PASSWORD", providerPassword).Replace(kamailioConfig))
	p.Start()
	return p
}

// Start starts it, again if it was stopped: it then knows no registrations.
func (p *Provider) Start() {
	p.t.Helper()
	p.program = start(p.t, "Kamailio "+p.addr.String(), p.dir, "kamailio",
		"-f", p.dir+"/kamailio.cfg", "-DD", "-E", "-P", p.dir+"/pid", "-Y", p.dir, "-m", "64", "-M", "8", "-n", "2", "-N", "1")
	eventually(p.t, 30*time.Second, "Kamailio starts", func() error {
		select {
		case <-p.done:
			p.t.Fatalf("Kamailio ended by itself: %v", p.err)
		default:
		}
		c, err := net.Dial("tcp", p.addr.String())
		if err == nil {
			c.Close()
		}
		return err
	})
}

// Stop ends it; what it knew is forgotten.
func (p *Provider) Stop() { p.stop() }

// Addr is where it listens, UDP and TCP.
func (p *Provider) Addr() netip.AddrPort { return p.addr }

// Port is the port of Addr.
func (p *Provider) Port() string { return strconv.Itoa(int(p.addr.Port())) }

// Registered reports how often somebody has registered as user since the start,
// refreshes included.
func (p *Provider) Registered(user string) int {
	n := 0
	for line := range strings.Lines(p.printed()) {
		if strings.Contains(line, "registered "+user+"@") && !strings.Contains(line, "expires=0") && !strings.Contains(line, "expires 0") {
			n++
		}
	}
	return n
}
