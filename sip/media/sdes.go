package media

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/pion/srtp/v3"
)

// suite is a crypto suite of SDES (RFC 4568 §6.2, RFC 6188, RFC 7714).
type suite struct {
	name    string
	profile srtp.ProtectionProfile
	length  int // of key and salt
	key     int
}

// suites in our order of preference. The first is what every telephone has.
var suites = []suite{
	{"AES_CM_128_HMAC_SHA1_80", srtp.ProtectionProfileAes128CmHmacSha1_80, 30, 16},
	{"AEAD_AES_256_GCM", srtp.ProtectionProfileAeadAes256Gcm, 44, 32},
	{"AES_CM_128_HMAC_SHA1_32", srtp.ProtectionProfileAes128CmHmacSha1_32, 30, 16},
	{"AEAD_AES_128_GCM", srtp.ProtectionProfileAeadAes128Gcm, 28, 16},
	{"AES_256_CM_HMAC_SHA1_80", srtp.ProtectionProfileAes256CmHmacSha1_80, 46, 32},
	{"AES_256_CM_HMAC_SHA1_32", srtp.ProtectionProfileAes256CmHmacSha1_32, 46, 32},
}

// offeredSuites is how many of them our offers have: each makes the INVITE longer, and
// over UDP it must stay within one packet (RFC 3261 §18.1.1).
const offeredSuites = 3

func suiteNamed(name string) (suite, bool) {
	name = strings.ToUpper(name)
	// RFC 6188 has AES_256_CM_...; libsrtp's examples spread AES_CM_256_... .
	name = strings.Replace(name, "AES_CM_256_", "AES_256_CM_", 1)
	for _, s := range suites {
		if s.name == name {
			return s, true
		}
	}
	return suite{}, false
}

// cryptoKey is one a=crypto line: a master key with its salt behind it.
type cryptoKey struct {
	tag  int
	as   string // the suite as it was spelled
	kind suite
	key  []byte
}

func newCryptoKey(tag int, kind suite) cryptoKey {
	k := cryptoKey{tag, kind.name, kind, make([]byte, kind.length)}
	rand.Read(k.key) //nolint:errcheck // never fails
	return k
}

func (k cryptoKey) String() string {
	return fmt.Sprintf("%d %s inline:%s", k.tag, k.as, base64.StdEncoding.EncodeToString(k.key))
}

func (k cryptoKey) same(o cryptoKey) bool {
	return k.kind == o.kind && bytes.Equal(k.key, o.key)
}

func (k cryptoKey) context(opts ...srtp.ContextOption) (*srtp.Context, error) {
	return srtp.CreateContext(k.key[:k.kind.key], k.key[k.kind.key:], k.kind.profile, opts...)
}

// parseCrypto reads the a=crypto lines that can be used, in their order. Lines with
// suites or parameters unknown here are passed over (RFC 4568 §7.1.2); broken keys,
// and one key or tag twice, make the whole description unacceptable: §6.1 wants each
// key to be unique within it.
func (m *mediaLine) parseCrypto() ([]cryptoKey, error) {
	var keys []cryptoKey
	tags := map[int]bool{}
	for _, a := range m.attrs {
		if a.key != "crypto" {
			continue
		}
		f := strings.Fields(a.value)
		if len(f) < 3 {
			return nil, malformed("bad a=crypto line")
		}
		tag, err := strconv.ParseUint(f[0], 10, 31) // at most 9 digits, says the RFC
		if err != nil {
			return nil, malformed("a=crypto without a tag")
		}
		if tags[int(tag)] {
			return nil, fmt.Errorf("a=crypto tag %d twice: %w", tag, ErrNotAcceptable)
		}
		tags[int(tag)] = true
		kind, ok := suiteNamed(f[1])
		if !ok || len(f) > 3 && !ignorable(f[3:]) {
			continue
		}
		inline, ok := strings.CutPrefix(f[2], "inline:")
		if !ok || strings.Contains(inline, ";") { // several keys by MKI
			continue
		}
		text, lifetime, _ := strings.Cut(inline, "|")
		if strings.Contains(lifetime, ":") { // an MKI in each packet
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(text)
		}
		if err != nil || len(raw) != kind.length {
			return nil, fmt.Errorf("a=crypto tag %d: not a key of %d octets: %w", tag, kind.length, ErrNotAcceptable)
		}
		k := cryptoKey{int(tag), f[1], kind, raw}
		for _, other := range keys {
			if bytes.Equal(other.key, k.key) {
				return nil, fmt.Errorf("a=crypto tag %d: the key of another: %w", tag, ErrNotAcceptable)
			}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// ignorable says whether session parameters change nothing for us (RFC 4568 §6.3).
// Above all UNENCRYPTED_SRTP would.
func ignorable(params []string) bool {
	for _, p := range params {
		if !strings.HasPrefix(p, "WSH=") && !strings.HasPrefix(p, "-") {
			return false
		}
	}
	return true
}
