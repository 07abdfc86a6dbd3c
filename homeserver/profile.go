package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"unicode"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// Limits of profiles (client-server API, "Profiles").
const (
	maxProfile      = 64 << 10 // bytes of all fields together
	maxProfileField = 255      // bytes of a field's name
	maxDisplayname  = 256      // characters
	maxAvatarURL    = 1000     // bytes
)

// profileRoutes are the endpoints of profiles and the user directory.
func (s *Server) profileRoutes() []route {
	field := append(v3("/profile/{userId}/{keyName}"), "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{userId}/{keyName}")
	return []route{
		{http.MethodGet, append(v3("/profile/{userId}"), "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{userId}"), accessPublic, limitNone, s.getProfile},
		{http.MethodGet, field, accessPublic, limitNone, s.getProfileField},
		{http.MethodPut, field, accessGuest, limitNone, s.putProfileField},
		{http.MethodDelete, field, accessGuest, limitNone, s.deleteProfileField},
		{http.MethodPost, v3("/user_directory/search"), accessUser, limitNone, s.postUserSearch},
	}
}

// getProfile is GET /profile/{userId}.
func (s *Server) getProfile(r *request) (any, error) {
	fields, err := s.profileFields(r.Context(), matrix.UserID(r.PathValue("userId")))
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("no such user on this server")
	}
	return fields, err
}

// profileFields returns what anybody may read of a user's profile.
func (s *Server) profileFields(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	if ghost := s.ghostProfile(user); ghost != nil {
		return ghost, nil
	}
	return s.deps.Store.ProfileFields(ctx, user)
}

// getProfileField is GET /profile/{userId}/{keyName}.
func (s *Server) getProfileField(r *request) (any, error) {
	key := r.PathValue("keyName")
	if err := checkProfileKey(key); err != nil {
		return nil, err
	}
	fields, err := s.profileFields(r.Context(), matrix.UserID(r.PathValue("userId")))
	if errors.Is(err, call.ErrNotFound) || err == nil && fields[key] == nil {
		return nil, notFound("no such profile field")
	}
	if err != nil {
		return nil, err
	}
	return map[string]json.RawMessage{key: fields[key]}, nil
}

// putProfileField is PUT /profile/{userId}/{keyName}.
func (s *Server) putProfileField(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	key := r.PathValue("keyName")
	if err := checkProfileKey(key); err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	value, ok := body[key]
	if !ok {
		return nil, missingParam("%s is needed", key)
	}
	value, err := checkProfileValue(key, value)
	if err != nil {
		return nil, err
	}
	fields, err := s.deps.Store.ProfileFields(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	total := len(key) + len(value)
	for k, v := range fields {
		if k != key {
			total += len(k) + len(v)
		}
	}
	if total > maxProfile {
		return nil, &matrix.Error{Status: http.StatusBadRequest, Code: "M_PROFILE_TOO_LARGE", Message: "a profile has at most 64 KiB"}
	}
	return nil, s.setProfileField(r, key, value)
}

// deleteProfileField is DELETE /profile/{userId}/{keyName}.
func (s *Server) deleteProfileField(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	key := r.PathValue("keyName")
	if err := checkProfileKey(key); err != nil {
		return nil, err
	}
	return nil, s.setProfileField(r, key, nil)
}

// setProfileField stores a field and shows names and avatars in the user's rooms.
func (s *Server) setProfileField(r *request, key string, value json.RawMessage) error {
	if err := s.deps.Store.SetProfileField(r.Context(), r.user, key, value); err != nil {
		return err
	}
	if key == "displayname" || key == "avatar_url" {
		s.propagateProfile(r.Context(), r.user)
	}
	return nil
}

// checkProfileKey checks a field's name (appendices, "Common Namespaced Identifier Grammar").
func checkProfileKey(key string) error {
	if len(key) > maxProfileField {
		return &matrix.Error{Status: http.StatusBadRequest, Code: "M_KEY_TOO_LARGE", Message: "a profile field's name has at most 255 bytes"}
	}
	bad := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-'
	}
	if key == "" || key[0] < 'a' || key[0] > 'z' || strings.ContainsFunc(key, bad) {
		return invalidParam("not a profile field's name")
	}
	return nil
}

// checkProfileValue returns the value to store, nil to remove the field.
func checkProfileValue(key string, value json.RawMessage) (json.RawMessage, error) {
	if key != "displayname" && key != "avatar_url" {
		return value, nil
	}
	var text *string
	if err := json.Unmarshal(value, &text); err != nil {
		return nil, badJSON("%s must be a string", key)
	}
	if text == nil || *text == "" {
		return nil, nil
	}
	if key == "displayname" && len([]rune(*text)) > maxDisplayname {
		return nil, invalidParam("a display name has at most %d characters", maxDisplayname)
	}
	if key == "avatar_url" && len(*text) > maxAvatarURL {
		return nil, invalidParam("an avatar URL has at most %d bytes", maxAvatarURL)
	}
	return value, nil
}

// postUserSearch is POST /user_directory/search. It finds the people with whom
// the caller shares a room, by ID or by the name of their own profile.
func (s *Server) postUserSearch(r *request) (any, error) {
	var body struct {
		SearchTerm string `json:"search_term"`
		Limit      *int   `json:"limit"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	limit := 10
	if body.Limit != nil {
		limit = min(max(*body.Limit, 0), 50)
	}
	type result struct {
		UserID      matrix.UserID `json:"user_id"`
		DisplayName string        `json:"display_name,omitempty"`
		AvatarURL   string        `json:"avatar_url,omitempty"`
	}
	found := []result{}
	term := fold(body.SearchTerm)
	sharing, err := s.usersSharingRooms(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	slices.Sort(sharing)
	for _, u := range slices.Compact(sharing) {
		if u == r.user {
			continue
		}
		name, avatar, err := s.deps.Store.Profile(r.Context(), u)
		if errors.Is(err, call.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !strings.Contains(fold(string(u)), term) && !strings.Contains(fold(name), term) {
			continue
		}
		if len(found) == limit {
			return map[string]any{"results": found, "limited": true}, nil
		}
		found = append(found, result{u, name, avatar})
	}
	return map[string]any{"results": found, "limited": false}, nil
}

// fold makes text comparable without regard to case.
func fold(s string) string {
	return strings.Map(func(c rune) rune { return unicode.ToLower(unicode.ToUpper(c)) }, s)
}
