package dialog

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// algorithms are those of RFC 8760, the best first. We offer the first and the
// last: phones know one of them.
var algorithms = []struct {
	name string
	new  func() hash.Hash
}{
	{"SHA-256", sha256.New},
	{"SHA-512-256", sha512.New512_256},
	{"MD5", md5.New},
}

func hasher(name string) func() hash.Hash {
	if name == "" {
		name = "MD5"
	}
	for _, a := range algorithms {
		if strings.EqualFold(a.name, name) {
			return a.new
		}
	}
	return nil
}

func digestHex(new func() hash.Hash, parts ...string) string {
	h := new()
	_, _ = h.Write([]byte(strings.Join(parts, ":")))
	return hex.EncodeToString(h.Sum(nil))
}

// digestResponse is the response of RFC 7616 §3.4.1; qop is "" or "auth".
func digestResponse(new func() hash.Hash, user, realm, password, method, uri, nonce, nc, cnonce, qop string) string {
	a1, a2 := digestHex(new, user, realm, password), digestHex(new, method, uri)
	if qop == "" {
		return digestHex(new, a1, nonce, a2)
	}
	return digestHex(new, a1, nonce, nc, cnonce, qop, a2)
}

// parseDigest reads the parameters of a Digest challenge or of credentials.
func parseDigest(s string) (map[string]string, bool) {
	rest, ok := cutPrefixFold(strings.TrimSpace(s), "Digest ")
	if !ok || len(s) > 4096 {
		return nil, false
	}
	out := map[string]string{}
	for _, part := range splitOutside(rest, ',') {
		if part == "" {
			continue
		}
		name, value, found := strings.Cut(part, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		value = strings.TrimSpace(value)
		if _, twice := out[name]; !found || !isToken(name) || twice {
			return nil, false
		}
		if strings.HasPrefix(value, `"`) && quotedEnd(value) != len(value) {
			return nil, false
		}
		out[name] = unquote(value)
	}
	return out, true
}

const (
	strongLife = 24 * time.Hour // how long a realm is not answered with less than it had offered
	nonceLife  = time.Minute
	maxNonces  = 20000
)

// nonces makes and checks our nonces. A nonce says when it was made, for which
// address and algorithm, and is signed: none is kept until it is used. Then its
// highest nc is, so that no request can be sent twice (RFC 7616 §3.4).
type nonces struct {
	secret []byte

	mu   sync.Mutex // guards the following
	used map[string]usedNonce
}

type usedNonce struct {
	nc   uint64
	made time.Time
}

func newNonces(secret []byte) *nonces {
	return &nonces{secret: secret, used: map[string]usedNonce{}}
}

func (n *nonces) sign(b []byte, src netip.Addr, algorithm string) []byte {
	h := hmac.New(sha256.New, n.secret)
	_, _ = h.Write(b)
	_, _ = h.Write([]byte(src.String() + " " + strings.ToUpper(algorithm)))
	return h.Sum(nil)[:16]
}

func (n *nonces) make(src netip.Addr, algorithm string) string {
	b := make([]byte, 16, 32)
	binary.BigEndian.PutUint64(b, uint64(time.Now().UnixMilli()))
	_, _ = rand.Read(b[8:16])
	return base64.RawURLEncoding.EncodeToString(append(b, n.sign(b, src, algorithm)...))
}

// check says whether a nonce is one of ours, and whether it is too old or its nc
// has been seen.
func (n *nonces) check(nonce string, src netip.Addr, algorithm string, nc uint64) (ours, stale bool) {
	b, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil || len(b) != 32 || !hmac.Equal(b[16:], n.sign(b[:16], src, algorithm)) {
		return false, false
	}
	made := time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
	age := time.Since(made)
	if age < -time.Second || age > nonceLife {
		return true, true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if u, seen := n.used[nonce]; seen && nc <= u.nc {
		return true, true
	}
	if len(n.used) >= maxNonces {
		for k, u := range n.used {
			if time.Since(u.made) > nonceLife {
				delete(n.used, k)
			}
		}
		if len(n.used) >= maxNonces {
			return true, true
		}
	}
	n.used[nonce] = usedNonce{nc, made}
	return true, false
}

// challenge makes the fields that ask for credentials, the best first (RFC 8760
// §2.3). A nonce is good for its own algorithm only. REGISTER is asked as a registrar does, everything else as a
// proxy, which is what gateways look like to trunks.
func (e *Endpoint) challenge(method string, stale bool, src netip.Addr, algorithms []string) (hs []Header) {
	name := "Proxy-Authenticate"
	if method == "REGISTER" {
		name = "WWW-Authenticate"
	}
	for _, algorithm := range algorithms {
		v := fmt.Sprintf(`Digest realm=%s, nonce="%s", algorithm=%s, qop="auth"`, quote(e.cfg.Realm), e.nonces.make(src, algorithm), algorithm)
		if stale {
			v += ", stale=true"
		}
		hs = append(hs, Header{name, v})
	}
	return hs
}

// authorized checks the credentials of m. A wrong user costs as much time and
// gets the same answer as a wrong password.
func (e *Endpoint) authorized(m *message, lookup func(user, realm string) (string, string, bool), algorithms []string) (user, trunk string, stale, ok bool) {
	given := append(m.all("Authorization"), m.all("Proxy-Authorization")...)
	if len(given) == 0 || lookup == nil {
		return "", "", false, false
	}
	src := m.flow.remote
	tried := false
	for _, v := range given {
		c, parsed := parseDigest(v)
		if !parsed || c["realm"] != e.cfg.Realm {
			continue // for somebody else
		}
		tried = true
		new := hasher(c["algorithm"])
		algorithm := c["algorithm"]
		if algorithm == "" {
			algorithm = "MD5"
		}
		if !slices.ContainsFunc(algorithms, func(a string) bool { return strings.EqualFold(a, algorithm) }) {
			continue // not asked for: no downgrade
		}
		if new == nil || c["qop"] != "auth" || len(c["nc"]) != 8 || c["cnonce"] == "" || !sameURI(c["uri"], m.uri) {
			continue
		}
		nc, err := strconv.ParseUint(c["nc"], 16, 64)
		if err != nil {
			continue
		}
		password, t, found := lookup(c["username"], e.cfg.Realm)
		if !found {
			password = "no such user, but the sum is done"
		}
		want := digestResponse(new, c["username"], e.cfg.Realm, password, m.method, c["uri"], c["nonce"], c["nc"], c["cnonce"], "auth")
		good := subtle.ConstantTimeCompare([]byte(want), []byte(strings.ToLower(c["response"]))) == 1
		if !good || !found {
			continue
		}
		// Only after the response is right: a stranger cannot use up nonces.
		ours, old := e.nonces.check(c["nonce"], src.Addr(), algorithm, nc)
		if ours && !old {
			return c["username"], t, false, true
		}
		if ours {
			return "", "", true, false // right password, old nonce: not counted
		}
	}
	if tried {
		e.handler.Bad(src, "digest")
	}
	return "", "", false, false
}

// sameURI compares the uri of credentials with the Request-URI: peers differ in
// parameters and default ports, and some leave the user out, never in the host.
// A request cannot be sent twice anyway: the nonce sees to that.
func sameURI(a, b string) bool {
	if a == b {
		return true
	}
	ua, ok1 := parseURI(a)
	ub, ok2 := parseURI(b)
	return ok1 && ok2 && (ua.User == ub.User || ua.User == "") && strings.EqualFold(ua.Host, ub.Host)
}

var errNoCredentials = errors.New("the peer asks for a password and none is configured for it")

// credentials are what answers a trunk's challenges.
type credentials struct{ username, password, realm string }

// authorize answers the challenge in res for a request like m, and returns the
// field to add. Only the peer that a target names is ever answered, and only in
// its realm; a realm that has offered SHA-256 is not answered with MD5 later.
func (e *Endpoint) authorize(res *message, method, uri string, c credentials) (h Header, realm string, stale bool, err error) {
	if c.username == "" {
		return h, "", false, errNoCredentials
	}
	from, to := "WWW-Authenticate", "Authorization"
	if res.code == 407 {
		from, to = "Proxy-Authenticate", "Proxy-Authorization"
	}
	best, rank := map[string]string(nil), len(algorithms)
	for _, v := range res.all(from) {
		p, ok := parseDigest(v)
		if !ok || p["nonce"] == "" || c.realm != "" && p["realm"] != c.realm {
			continue
		}
		if q := p["qop"]; q != "" && !hasWord(q, "auth") {
			continue
		}
		name := p["algorithm"]
		if name == "" {
			name = "MD5"
		}
		for i, a := range algorithms {
			if strings.EqualFold(a.name, name) && i < rank {
				best, rank = p, i
			}
		}
	}
	if best == nil {
		return h, "", false, errors.New("the peer asks for a password in a way or realm that is not ours")
	}
	key := best["realm"] + "\x00" + c.username
	e.mu.Lock()
	strong := time.Since(e.strong[key]) < strongLife
	if rank < len(algorithms)-1 && len(e.strong) < 10000 {
		e.strong[key] = time.Now()
	}
	e.mu.Unlock()
	if strong && rank == len(algorithms)-1 {
		return h, "", false, errors.New("the peer offers only MD5 where it has offered SHA-256 before")
	}
	var b strings.Builder
	add := func(name, value string, quoted bool) {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		if quoted {
			value = quote(value)
		}
		b.WriteString(name + "=" + value)
	}
	qop, nc, cnonce := "", "", ""
	if best["qop"] != "" {
		qop, nc, cnonce = "auth", "00000001", randomHex(16)
	}
	new := algorithms[rank].new
	add("username", c.username, true)
	add("realm", best["realm"], true)
	add("nonce", best["nonce"], true)
	add("uri", uri, true)
	add("response", digestResponse(new, c.username, best["realm"], c.password, method, uri, best["nonce"], nc, cnonce, qop), true)
	add("algorithm", algorithms[rank].name, false)
	if qop != "" {
		add("cnonce", cnonce, true)
		add("qop", qop, false)
		add("nc", nc, false)
	}
	if o, ok := best["opaque"]; ok {
		add("opaque", o, true)
	}
	return Header{to, "Digest " + b.String()}, best["realm"], strings.EqualFold(best["stale"], "true"), nil
}

func hasWord(list, word string) bool {
	for _, w := range splitList(list) {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
