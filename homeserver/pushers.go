package homeserver

import (
	"encoding/json"
	"net/http"

	"github.com/trunkhall/trunkhall/matrix"
)

// pusherRoutes are the endpoints of pushers and past notifications.
func (s *Server) pusherRoutes() []route {
	return []route{
		{http.MethodGet, v3("/pushers"), accessUser, limitNone, s.getPushers},
		{http.MethodPost, v3("/pushers/set"), accessUser, limitNone, s.postPusher},
		{http.MethodGet, v3("/notifications"), accessUser, limitNone, s.getNotifications},
	}
}

// getPushers is GET /pushers.
func (s *Server) getPushers(r *request) (any, error) {
	all, err := s.deps.Store.Pushers(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	list := make([]json.RawMessage, len(all))
	for i, p := range all {
		list[i] = p.JSON
	}
	return map[string]any{"pushers": list}, nil
}

// postPusher is POST /pushers/set. Pushers are kept; nothing is pushed yet.
func (s *Server) postPusher(r *request) (any, error) {
	type pusher struct {
		Kind        *string         `json:"kind"`
		AppID       string          `json:"app_id"`
		PushKey     string          `json:"pushkey"`
		AppName     *string         `json:"app_display_name"`
		DeviceName  *string         `json:"device_display_name"`
		Lang        *string         `json:"lang"`
		ProfileTag  *string         `json:"profile_tag,omitempty"`
		Data        json.RawMessage `json:"data"`
		Enabled     *bool           `json:"enabled,omitempty"` // MSC3881
		UnstEnabled *bool           `json:"org.matrix.msc3881.enabled,omitempty"`
		UnstDevice  matrix.DeviceID `json:"org.matrix.msc3881.device_id,omitempty"`
	}
	var body struct {
		pusher
		Append bool `json:"append"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.AppID == "" || body.PushKey == "" {
		return nil, missingParam("app_id and pushkey are needed")
	}
	if len(body.AppID) > 64 || len(body.PushKey) > 512 {
		return nil, invalidParam("app_id has at most 64 characters, pushkey 512 bytes")
	}
	if body.Kind == nil {
		return nil, s.deps.Store.DeletePusher(r.Context(), r.user, body.AppID, body.PushKey)
	}
	if body.AppName == nil || body.DeviceName == nil || body.Lang == nil || len(body.Data) == 0 {
		return nil, missingParam("app_display_name, device_display_name, lang and data are needed")
	}
	if *body.Kind == "http" {
		var data struct {
			URL string `json:"url"`
		}
		if err := decodeJSON(body.Data, &data); err != nil {
			return nil, err
		}
		if data.URL == "" {
			return nil, missingParam("data.url is needed")
		}
	}
	enabled := body.Enabled
	if enabled == nil {
		enabled = body.UnstEnabled
	}
	if enabled == nil {
		on := true
		enabled = &on
	}
	body.Enabled, body.UnstEnabled, body.UnstDevice = enabled, enabled, r.device
	stored, err := json.Marshal(body.pusher)
	if err != nil {
		return nil, err
	}
	return nil, s.deps.Store.SetPusher(r.Context(), r.user,
		matrix.Pusher{AppID: body.AppID, PushKey: body.PushKey, Device: r.device, JSON: stored}, !body.Append)
}

// getNotifications is GET /notifications. Past notifications are not kept, so
// there are none.
func (s *Server) getNotifications(*request) (any, error) {
	return map[string]any{"notifications": []any{}}, nil
}
