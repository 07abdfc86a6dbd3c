package homeserver

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const maxFilter = 64 << 10 // bytes

// accountDataRoutes are the endpoints of account data, tags and filters.
func (s *Server) accountDataRoutes() []route {
	return []route{
		{http.MethodPost, v3("/user/{userId}/filter"), accessGuest, limitNone, s.postFilter},
		{http.MethodGet, v3("/user/{userId}/filter/{filterId}"), accessGuest, limitNone, s.getFilter},
		{http.MethodPut, v3("/user/{userId}/account_data/{type}"), accessGuest, limitNone, s.putAccountData},
		{http.MethodGet, v3("/user/{userId}/account_data/{type}"), accessGuest, limitNone, s.getAccountData},
		{http.MethodPut, v3("/user/{userId}/rooms/{roomId}/account_data/{type}"), accessGuest, limitNone, s.putAccountData},
		{http.MethodGet, v3("/user/{userId}/rooms/{roomId}/account_data/{type}"), accessGuest, limitNone, s.getAccountData},
		{http.MethodGet, v3("/user/{userId}/rooms/{roomId}/tags"), accessGuest, limitNone, s.getTags},
		{http.MethodPut, v3("/user/{userId}/rooms/{roomId}/tags/{tag}"), accessGuest, limitNone, s.putTag},
		{http.MethodDelete, v3("/user/{userId}/rooms/{roomId}/tags/{tag}"), accessGuest, limitNone, s.deleteTag},
	}
}

// postFilter is POST /user/{userId}/filter.
func (s *Server) postFilter(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFilter {
		return nil, tooLarge("a filter has at most %d bytes", maxFilter)
	}
	filter, err := matrix.CanonicalObject(raw)
	if err != nil {
		return nil, badJSON("filter: %v", err)
	}
	var f syncFilter
	if err := decodeJSON(filter, &f); err != nil {
		return nil, err
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	id, err := s.deps.Store.PutFilter(r.Context(), r.user, filter)
	if err != nil {
		return nil, err
	}
	return map[string]any{"filter_id": id}, nil
}

// getFilter is GET /user/{userId}/filter/{filterId}.
func (s *Server) getFilter(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	return s.deps.Store.Filter(r.Context(), r.user, r.PathValue("filterId"))
}

// dataRoom returns the room of an account-data path, empty for global data.
func (r *request) dataRoom() (matrix.RoomID, error) {
	room := r.PathValue("roomId")
	if room != "" && !strings.HasPrefix(room, "!") {
		return "", invalidParam("not a room ID")
	}
	return matrix.RoomID(room), nil
}

// putAccountData is PUT /user/{userId}[/rooms/{roomId}]/account_data/{type}.
func (s *Server) putAccountData(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	room, err := r.dataRoom()
	if err != nil {
		return nil, err
	}
	typ := r.PathValue("type")
	if typ == "m.fully_read" || typ == "m.push_rules" {
		return nil, &matrix.Error{Status: http.StatusMethodNotAllowed, Code: matrix.CodeBadJSON, Message: typ + " is set through its own endpoints"}
	}
	if len(typ) > 255 {
		return nil, invalidParam("the type is longer than 255 bytes")
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	if err := s.deps.Store.PutAccountData(r.Context(), r.user, room, matrix.AccountData{Type: typ, Content: content}); err != nil {
		return nil, err
	}
	s.notify.wake(r.user)
	return nil, nil
}

// getAccountData is GET /user/{userId}[/rooms/{roomId}]/account_data/{type}.
func (s *Server) getAccountData(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	room, err := r.dataRoom()
	if err != nil {
		return nil, err
	}
	typ := r.PathValue("type")
	if room == "" && typ == "m.push_rules" {
		rs, err := s.ruleset(r.Context(), r.user)
		return map[string]any{"global": rs}, err
	}
	content, err := s.deps.Store.AccountDataEvent(r.Context(), r.user, room, typ)
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("no account data of type %s", typ)
	}
	return content, err
}

// A tagContent is the content of m.tag.
type tagContent struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

// getTags is GET /user/{userId}/rooms/{roomId}/tags.
func (s *Server) getTags(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	room, err := r.dataRoom()
	if err != nil {
		return nil, err
	}
	tags := tagContent{Tags: map[string]json.RawMessage{}}
	content, err := s.deps.Store.AccountDataEvent(r.Context(), r.user, room, "m.tag")
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return nil, err
	}
	_ = json.Unmarshal(content, &tags) // a client may have written anything there
	if tags.Tags == nil {
		tags.Tags = map[string]json.RawMessage{}
	}
	return tags, nil
}

// putTag is PUT /user/{userId}/rooms/{roomId}/tags/{tag}.
func (s *Server) putTag(r *request) (any, error) {
	raw, err := r.objectOrEmpty()
	if err != nil {
		return nil, err
	}
	if len(r.PathValue("tag")) > 255 {
		return nil, invalidParam("a tag has at most 255 bytes")
	}
	return s.changeTags(r, func(tags map[string]json.RawMessage) { tags[r.PathValue("tag")] = raw })
}

// deleteTag is DELETE /user/{userId}/rooms/{roomId}/tags/{tag}.
func (s *Server) deleteTag(r *request) (any, error) {
	return s.changeTags(r, func(tags map[string]json.RawMessage) { delete(tags, r.PathValue("tag")) })
}

func (s *Server) changeTags(r *request, change func(map[string]json.RawMessage)) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	room, err := r.dataRoom()
	if err != nil {
		return nil, err
	}
	err = s.deps.Store.UpdateAccountData(r.Context(), r.user, room, "m.tag", func(old json.RawMessage) (json.RawMessage, error) {
		var c tagContent
		_ = json.Unmarshal(old, &c)
		if c.Tags == nil {
			c.Tags = make(map[string]json.RawMessage)
		}
		change(c.Tags)
		return json.Marshal(c)
	})
	if err != nil {
		return nil, err
	}
	s.notify.wake(r.user)
	return nil, nil
}
