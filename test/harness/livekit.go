package harness

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// Token mints a LiveKit access token for a participant of a room.
func (s *Server) Token(identity, room string) string {
	return s.token(identity, map[string]any{"video": map[string]any{
		"room": room, "roomJoin": true, "canPublish": true, "canSubscribe": true, "canPublishData": true, "canUpdateOwnMetadata": true,
	}})
}

func (s *Server) token(identity string, grants map[string]any) string {
	now := time.Now().Unix()
	claims := map[string]any{"iss": s.APIKey, "sub": identity, "name": identity, "nbf": now - 10, "exp": now + 3600}
	maps.Copy(claims, grants)
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			s.t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." + part(claims)
	mac := hmac.New(sha256.New, []byte(s.APISecret))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Twirp calls a method of LiveKit's server API ("RoomService/RemoveParticipant")
// as the owner of the API key, in JSON, and decodes the answer into result,
// which may be nil.
func (s *Server) Twirp(ctx context.Context, method string, body, result any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	address := strings.Replace(s.LiveKitURL, "ws", "http", 1)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address+"/twirp/livekit."+method, bytes.NewReader(b))
	if err != nil {
		return err
	}
	room, _ := body.(map[string]any)["room"].(string)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+s.token("", map[string]any{
		"video": map[string]any{"roomAdmin": true, "roomCreate": true, "roomList": true, "room": room},
		"sip":   map[string]any{"admin": true, "call": true},
	}))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		e := &APIError{Request: method, Status: res.StatusCode}
		var twirp struct{ Code, Msg string }
		if json.Unmarshal(out, &twirp) == nil {
			e.Code, e.Message = twirp.Code, twirp.Msg
		} else {
			e.Message = string(out)
		}
		return e
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(out, result); err != nil {
		return fmt.Errorf("%s: %w in %s", method, err, out)
	}
	return nil
}
