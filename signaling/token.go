package signaling

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v3"
	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/trunkhall/trunkhall/call"
)

const (
	tokenLeeway = time.Minute // for exp and nbf, as LiveKit servers allow
	maxToken    = 64 << 10    // bytes; a token travels in a request line
)

// claims are the claims of a LiveKit access token that this server reads.
type claims struct {
	Issuer     string            `json:"iss,omitempty"`
	Subject    string            `json:"sub,omitempty"`
	ID         string            `json:"jti,omitempty"`
	NotBefore  *numericDate      `json:"nbf,omitempty"`
	Expires    *numericDate      `json:"exp,omitempty"`
	Name       string            `json:"name,omitempty"`
	Metadata   string            `json:"metadata,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Kind       string            `json:"kind,omitempty"`
	RoomConfig json.RawMessage   `json:"roomConfig,omitempty"` // protobuf JSON
	Video      *videoClaim       `json:"video,omitempty"`
	SIP        *sipClaim         `json:"sip,omitempty"`
}

// sipClaim is the grant for telephones: to administer trunks and rules, to call.
type sipClaim struct {
	Admin bool `json:"admin,omitempty"`
	Call  bool `json:"call,omitempty"`
}

// videoClaim is the grant inside a token. An absent canPublish or canSubscribe
// means yes, an absent canPublishData means what canPublish says.
type videoClaim struct {
	RoomCreate           bool     `json:"roomCreate,omitempty"`
	RoomList             bool     `json:"roomList,omitempty"`
	RoomAdmin            bool     `json:"roomAdmin,omitempty"`
	RoomJoin             bool     `json:"roomJoin,omitempty"`
	Room                 string   `json:"room,omitempty"`
	CanPublish           *bool    `json:"canPublish,omitempty"`
	CanSubscribe         *bool    `json:"canSubscribe,omitempty"`
	CanPublishData       *bool    `json:"canPublishData,omitempty"`
	CanPublishSources    []string `json:"canPublishSources,omitempty"`
	CanUpdateOwnMetadata *bool    `json:"canUpdateOwnMetadata,omitempty"`
	Hidden               bool     `json:"hidden,omitempty"`
}

// numericDate is RFC 7519's: seconds since 1970, perhaps with a fraction.
type numericDate time.Time

// MarshalJSON writes whole seconds, which every client reads.
func (d numericDate) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Time(d).Unix())
}

// UnmarshalJSON reads a number of seconds that fits a date.
func (d *numericDate) UnmarshalJSON(b []byte) error {
	var seconds float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	if math.Abs(seconds) > 1<<40 {
		return errors.New("date out of range")
	}
	whole, fraction := math.Modf(seconds)
	*d = numericDate(time.Unix(int64(whole), int64(fraction*1e9)))
	return nil
}

// verify checks a token's signature and times and returns its claims. Only
// HS256 with our key is accepted, whatever the token's header asks for.
func (s *Server) verify(token string) (*claims, error) {
	if len(token) > maxToken {
		return nil, errors.New("token too long")
	}
	if strings.Count(token, ".") != 2 {
		return nil, errors.New("not a compact JWT")
	}
	signed, err := jose.ParseSigned(token)
	if err != nil || len(signed.Signatures) != 1 {
		return nil, errors.New("malformed token")
	}
	header := signed.Signatures[0].Header
	if header.Algorithm != string(jose.HS256) {
		return nil, errors.New("unexpected signing method")
	}
	if header.KeyID != "" && header.KeyID != s.cfg.APIKey {
		return nil, errors.New("unknown key")
	}
	payload, err := signed.Verify([]byte(s.cfg.APISecret))
	if err != nil {
		return nil, errors.New("wrong signature")
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, errors.New("malformed claims")
	}
	return &c, c.validate(s.cfg.APIKey, time.Now())
}

func (c *claims) validate(issuer string, now time.Time) error {
	switch {
	case c.Issuer != issuer:
		return errors.New("unknown API key")
	case c.Expires == nil:
		return errors.New("token never expires")
	case now.Add(-tokenLeeway).After(time.Time(*c.Expires)):
		return errors.New("token is expired")
	case c.NotBefore != nil && now.Add(tokenLeeway).Before(time.Time(*c.NotBefore)):
		return errors.New("token is not valid yet")
	}
	return nil
}

// grant returns what the claims allow in the room they name.
func (c *claims) grant() call.Grant {
	v := c.Video
	if v == nil {
		v = &videoClaim{}
	}
	g := call.Grant{
		Room:                 call.RoomName(v.Room),
		Identity:             call.Identity(c.Subject),
		Name:                 c.Name,
		Metadata:             c.Metadata,
		Attrs:                maps.Clone(c.Attributes),
		Kind:                 call.ParticipantKind(c.Kind),
		CanPublish:           v.CanPublish == nil || *v.CanPublish,
		CanSubscribe:         v.CanSubscribe == nil || *v.CanSubscribe,
		CanUpdateOwnMetadata: v.CanUpdateOwnMetadata != nil && *v.CanUpdateOwnMetadata,
		Hidden:               v.Hidden,
	}
	if g.Identity == "" {
		g.Identity = call.Identity(c.ID)
	}
	g.CanPublishData = g.CanPublish
	if v.CanPublishData != nil {
		g.CanPublishData = *v.CanPublishData
	}
	for _, source := range v.CanPublishSources {
		g.CanPublishSources = append(g.CanPublishSources, call.Source(strings.ToLower(source)))
	}
	if c.NotBefore != nil {
		g.NotBefore = time.Time(*c.NotBefore)
	}
	if c.Expires != nil {
		g.Expires = time.Time(*c.Expires)
	}
	return g
}

// roomConfig returns the settings for a room that this token's join creates.
func (c *claims) roomConfig() *livekit.RoomConfiguration {
	if len(c.RoomConfig) == 0 {
		return nil
	}
	conf := &livekit.RoomConfiguration{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(c.RoomConfig, conf); err != nil {
		return nil
	}
	return conf
}

// mint returns a token for g that is valid for ttl, or for the configured
// lifetime if ttl is 0. Its nbf is g.NotBefore, or now.
func (s *Server) mint(g call.Grant, ttl time.Duration) (string, error) {
	if g.Room == "" || g.Identity == "" {
		return "", fmt.Errorf("mint token without room or identity: %w", call.ErrInvalid)
	}
	if ttl == 0 {
		ttl = s.cfg.TokenTTL
	}
	now := time.Now()
	notBefore := g.NotBefore
	if notBefore.IsZero() {
		notBefore = now
	}
	c := claims{
		Issuer:     s.cfg.APIKey,
		Subject:    string(g.Identity),
		NotBefore:  (*numericDate)(&notBefore),
		Expires:    (*numericDate)(new(now.Add(ttl))),
		Name:       g.Name,
		Metadata:   g.Metadata,
		Attributes: g.Attrs,
		Kind:       string(g.Kind),
		Video: &videoClaim{
			RoomJoin:             true,
			Room:                 string(g.Room),
			CanPublish:           &g.CanPublish,
			CanSubscribe:         &g.CanSubscribe,
			CanPublishData:       &g.CanPublishData,
			CanUpdateOwnMetadata: &g.CanUpdateOwnMetadata,
			Hidden:               g.Hidden,
		},
	}
	if g.Kind == call.KindStandard {
		c.Kind = ""
	}
	for _, source := range g.CanPublishSources {
		c.Video.CanPublishSources = append(c.Video.CanPublishSources, string(source))
	}
	token, err := s.sign(c)
	if err == nil && len(token) > maxToken/2 {
		// It would not fit into a request line any more: the participant can
		// rejoin, and set its metadata again.
		c.Metadata, c.Attributes = "", nil
		token, err = s.sign(c)
	}
	return token, err
}

// sign encodes and signs claims. MSC4195 clients decode the payload with
// window.atob, so its segment must have neither '-' nor '_': see atobSafe.
func (s *Server) sign(c claims) (string, error) {
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.HS256, Key: []byte(s.cfg.APISecret)},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("make signer: %w", err)
	}
	signed, err := signer.Sign(atobSafe(payload))
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return signed.CompactSerialize()
}

// atobSafe rewrites JSON so that its base64url form is also plain base64 of
// ASCII. The two alphabets differ in the values 62 and 63 only, which ASCII
// yields only where the low six bits of a third byte are 62 or 63: '>', '?',
// '~' and DEL. All of them, and what is not ASCII, can stand only inside JSON
// strings, where an escape means the same.
func atobSafe(jsonText []byte) []byte {
	if !slices.ContainsFunc(jsonText, needsEscape) {
		return jsonText
	}
	var b strings.Builder
	for _, r := range string(jsonText) {
		switch {
		case r < 0x80 && !needsEscape(byte(r)):
			b.WriteByte(byte(r))
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return []byte(b.String())
}

func needsEscape(c byte) bool {
	return c == '>' || c == '?' || c == '~' || c >= 0x7f
}
