package guard

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

var (
	start    = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	stranger = netip.MustParseAddr("198.51.100.7")
	trunk    = netip.MustParseAddr("203.0.113.9")
)

func testBans(change func(*Block)) *Bans {
	cfg := DefaultBlock()
	if change != nil {
		change(&cfg)
	}
	b := NewBans(cfg)
	b.SetTrunks([]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")})
	return b
}

// Somebody tries extensions one after the other, with a User-Agent like
// anybody's.
func TestScanIsBanned(t *testing.T) {
	b := testBans(nil)
	now, answered := start, 0
	for range 2000 {
		now = now.Add(20 * time.Millisecond)
		if b.Banned(now, stranger) {
			continue
		}
		answered++
		b.Bad(now, stranger, "no trunk")
	}
	if answered != 8 {
		t.Errorf("%d of 2000 messages were looked at, want 8", answered)
	}
	list := b.List(now)
	if len(list) != 1 {
		t.Fatalf("bans: %+v", list)
	}
	if ban := list[0]; ban.IP != stranger || ban.Why != "no trunk" || ban.Count != 8 || ban.Drops != 1992 || ban.Until.Sub(ban.Since) != time.Hour {
		t.Errorf("the ban is not told as it was: %+v", ban)
	}
	if b.Banned(now, netip.MustParseAddr("198.51.100.8")) {
		t.Error("the neighbour is banned too")
	}
	if !b.Banned(now, netip.MustParseAddr("::ffff:198.51.100.7")) {
		t.Error("the same address written for IPv6 gets through")
	}
	if now = list[0].Until; b.Banned(now, stranger) {
		t.Error("the ban does not end")
	}
	if b.Total() != 1 || len(b.List(now)) != 0 {
		t.Errorf("after the end: %d bans ever, %d now", b.Total(), len(b.List(now)))
	}
}

func TestSlowMistakesAreForgiven(t *testing.T) {
	b := testBans(nil)
	for i := range 100 {
		if _, made := b.Bad(start.Add(time.Duration(i)*9*time.Second), stranger, "failed digest"); made {
			t.Fatalf("banned at mistake %d: seven in a minute are not eight", i+1)
		}
	}
}

func TestTrunkIsNeverBanned(t *testing.T) {
	b := testBans(func(c *Block) { c.Never = []string{"192.0.2.1", "2001:db8::/32"} })
	for _, ip := range []string{"203.0.113.9", "::ffff:203.0.113.9", "192.0.2.1", "2001:db8::5"} {
		ip := netip.MustParseAddr(ip)
		for range 100 {
			b.Bad(start, ip, "malformed")
			if ok, _ := b.Allow(start, ip); !ok {
				t.Fatalf("%s is slowed down", ip)
			}
		}
		b.Agent(start, ip, "friendly-scanner")
		if b.Banned(start, ip) {
			t.Errorf("%s is banned", ip)
		}
	}
	// A host becomes a trunk's by registration or by the API.
	b.Agent(start, stranger, "sipvicious")
	b.SetTrunks([]netip.Prefix{netip.PrefixFrom(stranger, 32)})
	if b.Banned(start, stranger) {
		t.Error("a new trunk's address stays banned")
	}
}

func TestScannersAreBannedAtOnce(t *testing.T) {
	for agent, want := range map[string]bool{
		"friendly-scanner":        true,
		"Friendly-Scanner 1.2":    true,
		"sipvicious":              true,
		"sipcli/v1.8":             true,
		"pplsip":                  true,
		"VaxSIPUserAgent/3.1":     true,
		"evil phone":              true,
		"baresip v1.0.0":          false,
		"Linphone/5.1":            false,
		"kamailio (5.6.3 (x86))":  false,
		"":                        false,
		"FRITZ!OS":                false,
		"Asterisk PBX 22.0.0":     false,
		"scanner\r\nsip_ban ip=x": false,
	} {
		b := testBans(func(c *Block) { c.Agents = []string{"Evil"} })
		ban, made := b.Agent(start, stranger, agent)
		if made != want || b.Banned(start, stranger) != want {
			t.Errorf("%q: banned %v, want %v", agent, made, want)
		}
		if made && ban.Agent != agent {
			t.Errorf("%q is shown as %q", agent, ban.Agent)
		}
	}
	b := testBans(nil)
	if ban, _ := b.Agent(start, stranger, "sipcli\r\nsip_ban ip=1.2.3.4"); ban.Agent != "sipcli??sip_ban ip=1.2.3.4" {
		t.Errorf("a line break reaches the log: %q", ban.Agent)
	}
}

func TestBuckets(t *testing.T) {
	b := testBans(func(c *Block) { c.BanAfter = 0 })
	take := func(now time.Time, n int) (got int) {
		for range n {
			if ok, _ := b.Allow(now, stranger); ok {
				got++
			}
		}
		return got
	}
	if got := take(start, 50); got != 20 {
		t.Errorf("a burst of %d, want 20", got)
	}
	if got := take(start.Add(time.Second), 50); got != 5 {
		t.Errorf("%d a second later, want 5", got)
	}
	if got := take(start.Add(time.Hour), 50); got != 20 {
		t.Errorf("%d after an hour, want 20", got)
	}
}

func TestFloodIsBanned(t *testing.T) {
	b := testBans(nil)
	var made *Ban
	n := 0
	for made == nil && n < 100 {
		_, made = b.Allow(start, stranger)
		n++
	}
	if made == nil || n != 28 || made.Why != "too many requests" {
		t.Errorf("after %d requests at once: %+v; want a ban at the 28th", n, made)
	}
}

func TestSixIsBannedByNetwork(t *testing.T) {
	b := testBans(func(c *Block) { c.Never = []string{"2001:db8:1::1"} })
	for i := range 8 { // a new address each time
		b.Bad(start, netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", i+16)), "no trunk")
	}
	for ip, want := range map[string]bool{"2001:db8:1::ffff": true, "2001:db8:2::10": false, "2001:db8:1::1": false} {
		if got := b.Banned(start, netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s is banned: %v", ip, got)
		}
	}
	if !b.Lift(netip.MustParseAddr("2001:db8:1::77")) || b.Banned(start, netip.MustParseAddr("2001:db8:1::17")) {
		t.Error("the ban is not lifted by another address of the network")
	}
}

func TestLift(t *testing.T) {
	b := testBans(nil)
	for range 8 {
		b.Bad(start, stranger, "no trunk")
	}
	if !b.Lift(stranger) || b.Banned(start, stranger) {
		t.Error("the ban is not lifted")
	}
	if b.Lift(stranger) {
		t.Error("a ban that is not there was lifted")
	}
	for range 7 {
		if _, made := b.Bad(start, stranger, "no trunk"); made {
			t.Fatal("mistakes from before the ban were counted again")
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	b := testBans(func(c *Block) { c.BanAfter = 1 })
	for i := range maxHosts + 5000 {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		b.Allow(start, ip)
		b.Bad(start, ip, "no trunk")
	}
	if len(b.hosts) > maxHosts || len(b.banned) > maxBans {
		t.Errorf("%d hosts and %d bans are remembered", len(b.hosts), len(b.banned))
	}
	b.Allow(start.Add(2*time.Hour), stranger)
	if len(b.hosts) > 1 || len(b.banned) > 0 {
		t.Errorf("two hours later %d hosts and %d bans are still there", len(b.hosts), len(b.banned))
	}
}

func TestBlockComplaints(t *testing.T) {
	if err := DefaultBlock().Validate("sip.block"); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for i, change := range []func(*Block){
		func(c *Block) { c.Unknown = "maybe" },
		func(c *Block) { c.BanAfter = -1 },
		func(c *Block) { c.BanWithin = 0 },
		func(c *Block) { c.Never = []string{"example.org"} },
		func(c *Block) { c.BanAfter = 1e6 },
	} {
		cfg := DefaultBlock()
		change(&cfg)
		if cfg.Validate("sip.block") == nil {
			t.Errorf("complaint %d is missing", i)
		}
	}
}

func BenchmarkBanned(b *testing.B) {
	bans := testBans(nil)
	for i := range 10000 {
		bans.Agent(start, netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", i/256, i%256)), "sipcli")
	}
	b.ReportAllocs()
	for b.Loop() {
		bans.Banned(start, stranger)
	}
}
