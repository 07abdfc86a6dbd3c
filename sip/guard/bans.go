package guard

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxHosts is how many addresses are remembered at once, and maxBans how many of
// them banned. A flood from more sources makes us forget the oldest.
const (
	maxHosts = 20000
	maxBans  = 20000
)

// scanners are parts of the User-Agent headers of programs that look for open
// telephone servers.
var scanners = []string{
	"friendly-scanner", "friendly-request", "sipvicious", "sipcli", "sip-scan", "sipsak", "sundayddr",
	"iwar", "vaxsip", "vaxasip", "pplsip", "sipptk", "sivus", "gulp", "smap", "siparmyknife", "eyebeam-scan", "voipbuster-scan", "cia-scan",
}

// Bans decides which addresses are listened to. It may be used by many at once.
type Bans struct {
	cfg    Block
	agents []string // lower case
	never  []netip.Prefix

	mu     sync.Mutex // guards the following fields
	trunks []netip.Prefix
	hosts  map[netip.Addr]*host // by key
	banned map[netip.Addr]*Ban  // by key
	total  uint64
	swept  time.Time
}

// A host is an address that is no trunk's, as of late.
type host struct {
	tokens float64
	seen   time.Time
	bad    []time.Time // within ban_within, at most ban_after
}

// NewBans returns an empty list. cfg must be valid.
func NewBans(cfg Block) *Bans {
	b := &Bans{cfg: cfg, hosts: make(map[netip.Addr]*host), banned: make(map[netip.Addr]*Ban)}
	for _, a := range append(slices.Clone(scanners), cfg.Agents...) {
		if a = strings.ToLower(strings.TrimSpace(a)); a != "" {
			b.agents = append(b.agents, a)
		}
	}
	for _, n := range cfg.Never {
		if p, err := parseNetwork(n); err == nil {
			b.never = append(b.never, p)
		}
	}
	return b
}

// SetTrunks names the networks of known trunks. What comes from them is never
// banned and never slowed down, whatever else the same host sends. Bans of
// addresses in them end.
func (b *Bans) SetTrunks(networks []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trunks = slices.Clone(networks)
	for key, ban := range b.banned {
		if b.known(ban.IP) {
			delete(b.banned, key)
		}
	}
}

// key is what an address is counted under: itself, or its network of 64 bits, of
// which one customer has all.
func key(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return ip
	}
	p, _ := ip.Prefix(64)
	return p.Addr()
}

// known reports whether ip is a trunk's or on the operator's list. b.mu is held.
func (b *Bans) known(ip netip.Addr) bool {
	has := func(p netip.Prefix) bool { return p.Contains(ip) }
	return slices.ContainsFunc(b.trunks, has) || slices.ContainsFunc(b.never, has)
}

// Banned reports whether a message from ip is to be ignored. It is cheap: it
// comes before parsing.
func (b *Bans) Banned(now time.Time, ip netip.Addr) bool {
	ip = ip.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	ban := b.banned[key(ip)]
	if ban == nil || b.known(ip) {
		return false
	}
	if !now.Before(ban.Until) {
		delete(b.banned, key(ip))
		return false
	}
	ban.Drops++
	return true
}

// Allow takes a token of ip's bucket and reports whether there was one. Trunks
// have no bucket here. To go on without tokens is bad and counts towards a ban,
// which is returned if this made one; the caller logs it.
func (b *Bans) Allow(now time.Time, ip netip.Addr) (ok bool, made *Ban) {
	ip = ip.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cfg.Rate <= 0 || b.known(ip) {
		return true, nil
	}
	h := b.host(now, ip)
	if h.tokens >= 1 {
		h.tokens--
		return true, nil
	}
	if ban, is := b.count(now, ip, h, "too many requests", ""); is {
		return false, &ban
	}
	return false, nil
}

// Bad counts a bad message from ip: malformed, failed digest, no trunk. It
// returns the ban if this made one; the caller logs it.
func (b *Bans) Bad(now time.Time, ip netip.Addr, why string) (made Ban, is bool) {
	ip = ip.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !ip.IsValid() || b.known(ip) {
		return Ban{}, false
	}
	return b.count(now, ip, b.host(now, ip), why, "")
}

// Agent looks at a User-Agent header. A known scanner's bans ip at once, unless
// it is a trunk's.
func (b *Bans) Agent(now time.Time, ip netip.Addr, agent string) (made Ban, is bool) {
	if len(agent) > 256 {
		agent = agent[:256]
	}
	low := strings.ToLower(agent)
	if !slices.ContainsFunc(b.agents, func(a string) bool { return strings.Contains(low, a) }) {
		return Ban{}, false
	}
	ip = ip.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !ip.IsValid() || b.known(ip) || b.cfg.BanFor <= 0 {
		return Ban{}, false
	}
	return b.ban(now, ip, 1, "a scanner's User-Agent", printable(agent)), true
}

// host returns what is known of ip, with the tokens of now. b.mu is held.
func (b *Bans) host(now time.Time, ip netip.Addr) *host {
	b.sweep(now)
	burst := float64(max(b.cfg.Burst, 1))
	ip = key(ip)
	h := b.hosts[ip]
	if h == nil {
		if len(b.hosts) >= maxHosts {
			b.forgetOne()
		}
		h = &host{tokens: burst, seen: now}
		b.hosts[ip] = h
	}
	h.tokens = min(burst, h.tokens+now.Sub(h.seen).Seconds()*b.cfg.Rate)
	h.seen = now
	return h
}

// count adds a bad message. b.mu is held.
func (b *Bans) count(now time.Time, ip netip.Addr, h *host, why, agent string) (Ban, bool) {
	if b.cfg.BanAfter <= 0 || b.cfg.BanFor <= 0 || b.banned[key(ip)] != nil {
		return Ban{}, false
	}
	h.bad = slices.DeleteFunc(h.bad, func(t time.Time) bool { return now.Sub(t) >= b.cfg.BanWithin })
	h.bad = append(h.bad, now)
	if len(h.bad) < b.cfg.BanAfter {
		return Ban{}, false
	}
	n := len(h.bad)
	h.bad = nil
	return b.ban(now, ip, n, why, agent), true
}

func (b *Bans) ban(now time.Time, ip netip.Addr, count int, why, agent string) Ban {
	if len(b.banned) >= maxBans {
		for other := range b.banned { // any will do: a flood of them came within an hour
			delete(b.banned, other)
			break
		}
	}
	ban := &Ban{IP: ip, Why: why, Agent: agent, Count: count, Since: now, Until: now.Add(b.cfg.BanFor)}
	b.banned[key(ip)] = ban
	b.total++
	return *ban
}

// sweep forgets hosts whose buckets are full again and bans that are over, now
// and then. b.mu is held.
func (b *Bans) sweep(now time.Time) {
	if now.Sub(b.swept) < 10*time.Second {
		return
	}
	b.swept = now
	idle := max(b.cfg.BanWithin, time.Minute)
	for ip, h := range b.hosts {
		if now.Sub(h.seen) > idle {
			delete(b.hosts, ip)
		}
	}
	for ip, ban := range b.banned {
		if !now.Before(ban.Until) {
			delete(b.banned, ip)
		}
	}
}

// forgetOne makes room: of a few hosts the one not seen for longest goes. Which
// few, the order of the map decides. b.mu is held.
func (b *Bans) forgetOne() {
	var oldest netip.Addr
	looked := 0
	for ip, h := range b.hosts {
		if !oldest.IsValid() || h.seen.Before(b.hosts[oldest].seen) {
			oldest = ip
		}
		if looked++; looked == 16 {
			break
		}
	}
	delete(b.hosts, oldest)
}

// List returns the bans that hold, the latest first.
func (b *Bans) List(now time.Time) []Ban {
	b.mu.Lock()
	list := make([]Ban, 0, len(b.banned))
	for _, ban := range b.banned {
		if now.Before(ban.Until) {
			list = append(list, *ban)
		}
	}
	b.mu.Unlock()
	slices.SortFunc(list, func(x, y Ban) int {
		return cmp.Or(y.Since.Compare(x.Since), x.IP.Compare(y.IP))
	})
	return list
}

// Total returns how many bans there ever were.
func (b *Bans) Total() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// Lift ends a ban and forgets what led to it. It reports whether there was one.
func (b *Bans) Lift(ip netip.Addr) bool {
	ip = ip.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	_, had := b.banned[key(ip)]
	delete(b.banned, key(ip))
	delete(b.hosts, key(ip))
	return had
}

// parseNetwork reads a network, or an address as the network of it alone.
func parseNetwork(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// printable keeps what a stranger wrote fit for a log and a page.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}
