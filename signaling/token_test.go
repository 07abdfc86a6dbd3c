package signaling

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/livekit/protocol/auth"
	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// forge signs header and claims with HMAC-SHA-256, as an attacker or an owner
// of the secret would.
func forge(header, claims any, secret string) string {
	input := encode(header) + "." + encode(claims)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

type object = map[string]any

var plainHeader = object{"alg": "HS256", "typ": "JWT"}

func plainClaims(change object) object {
	now := time.Now().Unix()
	c := object{
		"iss": testKey, "sub": "alice", "nbf": now, "exp": now + 600,
		"video": object{"room": "standup", "roomJoin": true},
	}
	for key, value := range change {
		if value == nil {
			delete(c, key)
		} else {
			c[key] = value
		}
	}
	return c
}

func TestTokens(t *testing.T) {
	ts := newTestServer(t)
	now := time.Now().Unix()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := forge(plainHeader, plainClaims(nil), testSecret)
	parts := strings.Split(good, ".")

	unsigned := encode(object{"alg": "none"}) + "." + encode(plainClaims(nil)) + "."
	rsInput := encode(object{"alg": "RS256"}) + "." + encode(plainClaims(nil))
	digest := sha256.Sum256([]byte(rsInput))
	rsSignature, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	hs512Input := encode(object{"alg": "HS512"}) + "." + encode(plainClaims(nil))
	mac := hmac.New(sha512.New, []byte(testSecret))
	mac.Write([]byte(hs512Input))

	for _, c := range []struct {
		name  string
		token string
		want  int
	}{
		{"an ordinary token", good, 200},
		{"no signature (alg none)", unsigned, 401},
		{"alg none with the signature of HS256", encode(object{"alg": "none"}) + "." + parts[1] + "." + parts[2], 401},
		{"alg NoNe", encode(object{"alg": "NoNe"}) + "." + parts[1] + "." + parts[2], 401},
		{"signed by an RSA key of the attacker", rsInput + "." + base64.RawURLEncoding.EncodeToString(rsSignature), 401},
		{"signed with our secret but another algorithm", hs512Input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), 401},
		{"a key embedded in the header", forge(object{"alg": "HS256", "jwk": object{"kty": "oct", "k": "c2VjcmV0"}}, plainClaims(nil), "secret"), 401},
		{"another secret", forge(plainHeader, plainClaims(nil), "fedcba9876543210fedcba9876543210"), 401},
		{"an empty secret", forge(plainHeader, plainClaims(nil), ""), 401},
		{"a kid that is not ours", forge(object{"alg": "HS256", "kid": "other"}, plainClaims(nil), testSecret), 401},
		{"our kid", forge(object{"alg": "HS256", "kid": testKey}, plainClaims(nil), testSecret), 200},
		{"an unknown critical header", forge(object{"alg": "HS256", "crit": []string{"x"}, "x": 1}, plainClaims(nil), testSecret), 401},
		{"another issuer", forge(plainHeader, plainClaims(object{"iss": "APIother"}), testSecret), 401},
		{"no issuer", forge(plainHeader, plainClaims(object{"iss": nil}), testSecret), 401},
		{"no expiry", forge(plainHeader, plainClaims(object{"exp": nil}), testSecret), 401},
		{"expired 30 s ago: inside the leeway", forge(plainHeader, plainClaims(object{"exp": now - 30}), testSecret), 200},
		{"expired more than a minute ago", forge(plainHeader, plainClaims(object{"exp": now - 62}), testSecret), 401},
		{"valid in half a minute: inside the leeway", forge(plainHeader, plainClaims(object{"nbf": now + 30}), testSecret), 200},
		{"valid next hour", forge(plainHeader, plainClaims(object{"nbf": now + 3600}), testSecret), 401},
		{"an expiry that is no date", forge(plainHeader, plainClaims(object{"exp": "tomorrow"}), testSecret), 401},
		{"an expiry beyond all dates", forge(plainHeader, plainClaims(object{"exp": 1e300}), testSecret), 401},
		{"huge claims", forge(plainHeader, plainClaims(object{"metadata": strings.Repeat("x", 100<<10)}), testSecret), 401},
		{"claims that are no object", forge(plainHeader, []int{1}, testSecret), 401},
		{"identity edited after signing", parts[0] + "." + encode(plainClaims(object{"sub": "bob"})) + "." + parts[2], 401},
		{"room edited after signing", parts[0] + "." + encode(plainClaims(object{"video": object{"room": "b", "roomJoin": true}})) + "." + parts[2], 401},
		{"JWS in JSON form", `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, 401},
		{"not a token", "not-a-token", 401},
		{"dots alone", "..", 401},
		{"no right to join", forge(plainHeader, plainClaims(object{"video": object{"room": "standup"}}), testSecret), 401},
		{"no video grant", forge(plainHeader, plainClaims(object{"video": nil}), testSecret), 401},
		{"identity in jti", forge(plainHeader, plainClaims(object{"sub": nil, "jti": "alice"}), testSecret), 200},
		{"no identity", forge(plainHeader, plainClaims(object{"sub": nil}), testSecret), 400},
		{"identity too long", forge(plainHeader, plainClaims(object{"sub": strings.Repeat("a", 257)}), testSecret), 400},
		{"no room", forge(plainHeader, plainClaims(object{"video": object{"roomJoin": true}}), testSecret), 400},
		{"room name too long", forge(plainHeader, plainClaims(object{"video": object{"roomJoin": true, "room": strings.Repeat("r", 257)}}), testSecret), 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			// In the header: a query has limits of its own.
			r, err := http.NewRequest(http.MethodGet, ts.http.URL+"/rtc/validate", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+c.token)
			if got, body := ts.do(r); got != c.want {
				t.Errorf("status %d (%s), want %d", got, body, c.want)
			}
		})
	}
}

// TestTokenForOneRoom proves that the room of a session comes from the token:
// nothing in the request can change it.
func TestTokenForOneRoom(t *testing.T) {
	ts := newTestServer(t)
	token := url.QueryEscape(ts.token("alice", "a"))
	_, join := ts.join("bob", "b")
	c := ts.dial("/rtc?room=b&identity=bob&access_token=" + token)
	got := c.next().GetJoin()
	if got.GetRoom().GetName() != "a" || got.GetParticipant().GetIdentity() != "alice" {
		t.Errorf("joined %s as %s with a token for alice in a", got.GetRoom().GetName(), got.GetParticipant().GetIdentity())
	}
	if room, _ := ts.sfu.Room("b"); room.Info().SID != join.GetRoom().GetSid() || len(room.Participants()) != 1 {
		t.Error("the token for room a disturbed room b")
	}
}

func TestMintedTokens(t *testing.T) {
	ts := newTestServer(t)
	for _, id := range []call.Identity{
		"alice", "~~~???>>>", "a~b~c~d~e", "\x7f\x7f\x7f\x7f", "Жанна д'Арк", "👩‍🚀 \"quoted\" \\ <tag>", "日本語??>~",
	} {
		for pad := range 3 { // every alignment of what follows
			g := call.Grant{
				Room: call.RoomName("room" + strings.Repeat("x", pad)), Identity: id,
				CanPublish: true, CanPublishSources: []call.Source{call.SourceCamera}, CanSubscribe: true,
				Name: string(id), Metadata: "m~?>", Attrs: map[string]string{"k~": "v?ü"},
			}
			token, err := ts.s.mint(g, 10*time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			payload := strings.Split(token, ".")[1]
			if strings.ContainsAny(payload, "-_") {
				t.Errorf("payload of %q has '-' or '_': browsers can not decode it with atob", id)
			}
			raw, err := base64.RawStdEncoding.DecodeString(payload)
			if err != nil || strings.ContainsFunc(string(raw), func(r rune) bool { return r >= 0x7f }) {
				t.Errorf("payload of %q is not plain ASCII: %v", id, err)
			}
			c, err := ts.s.verify(token)
			if err != nil {
				t.Fatal(err)
			}
			back := c.grant()
			if back.Identity != id || back.Name != string(id) || back.Attrs["k~"] != "v?ü" || back.Room != g.Room {
				t.Errorf("%q came back as %+v", id, back)
			}
			if !back.CanPublish || back.CanPublishData || !back.MayPublish(call.SourceCamera) || back.MayPublish(call.SourceMicrophone) {
				t.Errorf("permissions changed: %+v", back)
			}
			if back.CanUpdateOwnMetadata || back.Hidden {
				t.Errorf("minted more than was granted: %+v", back)
			}
			theirs(t, token, string(id))
		}
	}
}

// theirs checks a token with LiveKit's own verifier.
func theirs(t *testing.T, token, identity string) {
	t.Helper()
	v, err := auth.ParseAPIToken(token)
	if err != nil {
		t.Fatal(err)
	}
	_, grants, err := v.Verify(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	if grants.Identity != identity || !grants.Video.RoomJoin || grants.Video.RoomCreate || grants.Video.RoomAdmin {
		t.Errorf("LiveKit reads %+v", grants)
	}
}

// TestLiveKitTokens lets LiveKit's own library make the tokens.
func TestLiveKitTokens(t *testing.T) {
	ts := newTestServer(t)
	no := false
	token, err := auth.NewAccessToken(testKey, testSecret).
		SetIdentity("alice").SetName("Alice").SetValidFor(time.Hour).
		SetVideoGrant(&auth.VideoGrant{RoomJoin: true, Room: "standup", CanSubscribe: &no}).ToJWT()
	if err != nil {
		t.Fatal(err)
	}
	c, err := ts.s.verify(token)
	if err != nil {
		t.Fatal(err)
	}
	g := c.grant()
	if g.Identity != "alice" || g.Name != "Alice" || g.Room != "standup" || g.CanSubscribe || !g.CanPublish || !g.CanPublishData {
		t.Errorf("got %+v", g)
	}
}

func TestMintNotBefore(t *testing.T) {
	ts := newTestServer(t)
	later := time.Now().Add(20 * time.Second).Truncate(time.Second)
	token := ts.tokenFor(call.Grant{Room: "a", Identity: "b", NotBefore: later})
	c, err := ts.s.verify(token)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.grant().NotBefore; !got.Equal(later) {
		t.Errorf("nbf %v, want %v", got, later)
	}
	if _, err := ts.s.mint(call.Grant{Room: "a"}, 0); err == nil {
		t.Error("minted a token for nobody")
	}
}

// TestRefreshNotBefore is somebody who was removed and let in again within one
// second: the floor of its tokens is the next one, and a refreshed token must
// not be older.
func TestRefreshNotBefore(t *testing.T) {
	ts := newTestServer(t)
	floor := time.Now().Add(50 * time.Second).Truncate(time.Second)
	c := ts.dial(ts.v1(ts.tokenFor(call.Grant{Room: "r", Identity: "alice", NotBefore: floor}), &livekit.JoinRequest{}))
	token := c.await("refresh_token").GetRefreshToken()
	got, err := ts.s.verify(token)
	if err != nil {
		t.Fatal(err)
	}
	if nbf := got.grant().NotBefore; nbf.Before(floor) {
		t.Errorf("nbf %v of the refreshed token is before the floor %v", nbf, floor)
	}
}

func FuzzToken(f *testing.F) {
	s := &Server{cfg: Config{APIKey: testKey, APISecret: testSecret}}
	f.Add(forge(plainHeader, plainClaims(nil), testSecret))
	f.Add("a.b.c")
	f.Add(`{"payload":"e30","protected":"e30","signature":""}..`)
	f.Fuzz(func(t *testing.T, token string) {
		c, err := s.verify(token)
		if err == nil && c.Issuer != testKey {
			t.Error(fmt.Sprint("accepted a token of ", c.Issuer))
		}
	})
}
