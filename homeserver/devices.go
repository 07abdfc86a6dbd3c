package homeserver

import (
	"context"
	"errors"
	"net/http"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// deviceRoutes are the endpoints of device management.
func (s *Server) deviceRoutes() []route {
	return []route{
		{http.MethodGet, v3("/devices"), accessGuest, limitNone, s.getDevices},
		{http.MethodGet, v3("/devices/{deviceId}"), accessGuest, limitNone, s.getDevice},
		{http.MethodPut, v3("/devices/{deviceId}"), accessGuest, limitNone, s.putDevice},
		{http.MethodDelete, v3("/devices/{deviceId}"), accessUser, limitNone, s.deleteDevice},
		{http.MethodPost, v3("/delete_devices"), accessUser, limitNone, s.postDeleteDevices},
	}
}

// wakeSharing wakes the syncs of everybody who must learn that a user's device
// list changed, the user included.
func (s *Server) wakeSharing(ctx context.Context, user matrix.UserID) {
	sharing, err := s.usersSharingRooms(ctx, user)
	if err != nil {
		s.log.Warn("wake users sharing rooms", "user", user, "error", err) // they learn it with their next sync
	}
	s.notify.wake(append(sharing, user)...)
}

// deleteDevices ends devices of a user with all that belongs to them.
func (s *Server) deleteDevices(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) error {
	if len(devices) == 0 {
		return nil
	}
	if err := s.deps.Store.DeleteDevices(ctx, user, devices...); err != nil {
		return err
	}
	s.wakeSharing(ctx, user)
	return nil
}

// DeviceExists reports whether a user of this server has a device.
func (s *Server) DeviceExists(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (bool, error) {
	_, err := s.deps.Store.Device(ctx, user, device)
	if errors.Is(err, call.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// deviceJSON is a device as its user sees it.
func deviceJSON(user matrix.UserID, d matrix.Device) map[string]any {
	j := map[string]any{"device_id": d.ID, "user_id": user}
	if d.DisplayName != "" {
		j["display_name"] = d.DisplayName
	}
	if !d.LastSeen.IsZero() {
		j["last_seen_ip"] = d.LastSeenIP
		j["last_seen_ts"] = d.LastSeen.UnixMilli()
	}
	return j
}

// getDevices is GET /devices.
func (s *Server) getDevices(r *request) (any, error) {
	all, err := s.deps.Store.Devices(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	list := make([]map[string]any, len(all))
	for i, d := range all {
		list[i] = deviceJSON(r.user, d)
	}
	return map[string]any{"devices": list}, nil
}

// getDevice is GET /devices/{deviceId}.
func (s *Server) getDevice(r *request) (any, error) {
	d, err := s.deps.Store.Device(r.Context(), r.user, matrix.DeviceID(r.PathValue("deviceId")))
	if err != nil {
		return nil, err
	}
	return deviceJSON(r.user, d), nil
}

// putDevice is PUT /devices/{deviceId}.
func (s *Server) putDevice(r *request) (any, error) {
	var body struct {
		DisplayName *string `json:"display_name"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	id := matrix.DeviceID(r.PathValue("deviceId"))
	if body.DisplayName == nil {
		_, err := s.deps.Store.Device(r.Context(), r.user, id)
		return nil, err
	}
	if len(*body.DisplayName) > 1024 {
		return nil, invalidParam("display_name is longer than 1024 bytes")
	}
	if err := s.deps.Store.RenameDevice(r.Context(), r.user, id, *body.DisplayName); err != nil {
		return nil, err
	}
	s.wakeSharing(r.Context(), r.user)
	return nil, nil
}

// deleteDevice is DELETE /devices/{deviceId}.
func (s *Server) deleteDevice(r *request) (any, error) {
	raw, err := r.objectOrEmpty()
	if err != nil {
		return nil, err
	}
	if _, err := s.confirmSelf(r, raw); err != nil {
		return nil, err
	}
	return nil, s.deleteDevices(r.Context(), r.user, matrix.DeviceID(r.PathValue("deviceId")))
}

// postDeleteDevices is POST /delete_devices.
func (s *Server) postDeleteDevices(r *request) (any, error) {
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	type devicesBody struct {
		Devices []matrix.DeviceID `json:"devices"`
	}
	var body devicesBody
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if raw, err = s.confirmSelf(r, raw); err != nil {
		return nil, err
	}
	body = devicesBody{}
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if body.Devices == nil {
		return nil, missingParam("devices is needed")
	}
	return nil, s.deleteDevices(r.Context(), r.user, body.Devices...)
}
