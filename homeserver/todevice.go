package homeserver

import (
	"encoding/json"
	"net/http"

	"github.com/trunkhall/trunkhall/matrix"
)

// toDeviceRoutes are the endpoints of messages between devices.
func (s *Server) toDeviceRoutes() []route {
	return []route{
		// Not limited: the media keys of calls travel here.
		{http.MethodPut, v3("/sendToDevice/{eventType}/{txnId}"), accessGuest, limitNone, s.putSendToDevice},
	}
}

// maxToDevice is the size of an event for one device, in bytes: that of any event.
const maxToDevice = 65536

// putSendToDevice is PUT /sendToDevice/{eventType}/{txnId}.
func (s *Server) putSendToDevice(r *request) (any, error) {
	var body struct {
		Messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"messages"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.Messages == nil {
		return nil, missingParam("messages is needed")
	}
	typ := r.PathValue("eventType")
	if len(typ) > 255 {
		return nil, invalidParam("the type is longer than 255 bytes")
	}
	var events []matrix.ToDevice
	var users []matrix.UserID
	for user, devices := range body.Messages {
		if user.Server() != s.cfg.ServerName {
			continue // there is nobody to carry it until this server federates
		}
		users = append(users, user)
		for device, content := range devices {
			if len(content) == 0 || content[0] != '{' {
				return nil, badJSON("messages: the content for a device must be an object")
			}
			event, err := json.Marshal(map[string]any{"type": typ, "sender": r.user, "content": content})
			if err != nil {
				return nil, badJSON("messages: %v", err)
			}
			if len(event) > maxToDevice {
				return nil, tooLarge("an event for a device has at most %d bytes", maxToDevice)
			}
			events = append(events, matrix.ToDevice{User: user, Device: device, Event: event})
		}
	}
	sent, err := s.deps.Store.SendToDevice(r.Context(), r.user, r.device, typ+" "+r.PathValue("txnId"), events)
	if err != nil {
		return nil, err
	}
	if sent {
		s.notify.wake(users...)
	}
	return nil, nil
}
