package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// An Account is a Matrix account used by plain requests.
type Account struct {
	Homeserver  string
	UserID      string `json:"user_id"`
	AccessToken string `json:"access_token"`
	DeviceID    string `json:"device_id"`
}

// An APIError is an answer with a status other than 200.
type APIError struct {
	Request      string
	Status       int
	Code         string `json:"errcode"`
	Message      string `json:"error"`
	RetryAfterMS int64  `json:"retry_after_ms"`
}

func (e *APIError) Error() string {
	return fmt.Sprintf("%s: %d %s %s", e.Request, e.Status, e.Code, e.Message)
}

// Register makes an account through the dummy stage. A server that is asked for
// many at once may say when to come back; Register does.
func (s *Server) Register(ctx context.Context, name string) (*Account, error) {
	a := &Account{Homeserver: s.Homeserver}
	body := map[string]any{"username": name, "password": name + " secret password", "auth": map[string]any{"type": "m.login.dummy"}}
	for {
		err := a.Do(ctx, http.MethodPost, "/v3/register", body, a)
		var api *APIError
		if as(err, &api) && api.Status == http.StatusTooManyRequests {
			select {
			case <-time.After(time.Duration(max(api.RetryAfterMS, 100)) * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil, err
			}
		}
		return a, err
	}
}

func as(err error, target **APIError) bool {
	api, ok := err.(*APIError)
	*target = api
	return ok
}

// Do calls the client-server API and decodes its answer into result, which may
// be nil. path may have a query.
func (a *Account) Do(ctx context.Context, method, path string, body, result any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.Homeserver+"/_matrix/client"+path, in)
	if err != nil {
		return err
	}
	if a.AccessToken != "" {
		req.Header.Set("Authorization", "Bearer "+a.AccessToken)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		e := &APIError{Request: method + " " + path, Status: res.StatusCode}
		if json.Unmarshal(b, e) != nil {
			e.Message = string(b)
		}
		return e
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(b, result); err != nil {
		return fmt.Errorf("%s %s: %w in %s", method, path, err, b)
	}
	return nil
}

// CreateRoom creates a room and returns its ID.
func (a *Account) CreateRoom(ctx context.Context, body any) (string, error) {
	var r struct {
		RoomID string `json:"room_id"`
	}
	err := a.Do(ctx, http.MethodPost, "/v3/createRoom", body, &r)
	return r.RoomID, err
}

// Join joins a room.
func (a *Account) Join(ctx context.Context, room string) error {
	return a.Do(ctx, http.MethodPost, "/v3/join/"+url.PathEscape(room), map[string]any{}, nil)
}

// LiveKitToken asks the token service for a token for the room's call, as a
// call client does, and returns the SFU's address and the token.
func (a *Account) LiveKitToken(ctx context.Context, s *Server, room string) (sfu, token string, err error) {
	var openid json.RawMessage
	if err := a.Do(ctx, http.MethodPost, "/v3/user/"+url.PathEscape(a.UserID)+"/openid/request_token", map[string]any{}, &openid); err != nil {
		return "", "", err
	}
	b, err := json.Marshal(map[string]any{"room": room, "openid_token": openid, "device_id": a.DeviceID})
	if err != nil {
		return "", "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.JWTService+"/sfu/get", bytes.NewReader(b))
	if err != nil {
		return "", "", err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		return "", "", err
	}
	if res.StatusCode != http.StatusOK {
		e := &APIError{Request: "POST /sfu/get", Status: res.StatusCode}
		if json.Unmarshal(out, e) != nil {
			e.Message = string(out)
		}
		return "", "", e
	}
	var r struct {
		URL string `json:"url"`
		JWT string `json:"jwt"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return "", "", fmt.Errorf("POST /sfu/get: %w", err)
	}
	return r.URL, r.JWT, nil
}
