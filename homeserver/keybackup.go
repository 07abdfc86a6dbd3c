package homeserver

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// keyBackupRoutes are the endpoints of server-side key backups (client-server
// API, "Server-side key backups").
func (s *Server) keyBackupRoutes() []route {
	rs := []route{
		{http.MethodPost, v3("/room_keys/version"), accessUser, limitNone, s.postBackupVersion},
		{http.MethodGet, v3("/room_keys/version"), accessGuest, limitNone, s.getBackupVersion},
		{http.MethodGet, v3("/room_keys/version/{version}"), accessGuest, limitNone, s.getBackupVersion},
		{http.MethodPut, v3("/room_keys/version/{version}"), accessUser, limitNone, s.putBackupVersion},
		{http.MethodDelete, v3("/room_keys/version/{version}"), accessUser, limitNone, s.deleteBackupVersion},
	}
	for _, p := range []string{"/room_keys/keys", "/room_keys/keys/{roomId}", "/room_keys/keys/{roomId}/{sessionId}"} {
		rs = append(rs,
			route{http.MethodPut, v3(p), accessUser, limitNone, s.putRoomKeys},
			route{http.MethodGet, v3(p), accessUser, limitNone, s.getRoomKeys},
			route{http.MethodDelete, v3(p), accessUser, limitNone, s.deleteRoomKeys})
	}
	return rs
}

// A backupVersionBody is the body that makes or changes a version.
type backupVersionBody struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Version   string          `json:"version"`
}

func (r *request) backupVersionBody() (backupVersionBody, error) {
	var body backupVersionBody
	if err := r.decode(&body); err != nil {
		return body, err
	}
	if body.Algorithm == "" || len(body.AuthData) == 0 {
		return body, missingParam("algorithm and auth_data are needed")
	}
	if body.AuthData[0] != '{' {
		return body, badJSON("auth_data must be an object")
	}
	return body, nil
}

// postBackupVersion is POST /room_keys/version.
func (s *Server) postBackupVersion(r *request) (any, error) {
	body, err := r.backupVersionBody()
	if err != nil {
		return nil, err
	}
	version, err := s.deps.Store.CreateBackup(r.Context(), r.user, body.Algorithm, body.AuthData)
	return map[string]any{"version": version}, err
}

// noBackup words the error for a version that does not exist.
func noBackup(err error) error {
	if errors.Is(err, call.ErrNotFound) {
		return notFound("no such backup version")
	}
	return err
}

// getBackupVersion is GET /room_keys/version[/{version}].
func (s *Server) getBackupVersion(r *request) (any, error) {
	b, err := s.deps.Store.Backup(r.Context(), r.user, r.PathValue("version"))
	if err != nil {
		return nil, noBackup(err)
	}
	return map[string]any{"version": b.Version, "algorithm": b.Algorithm, "auth_data": b.AuthData, "etag": b.ETag, "count": b.Count}, nil
}

// putBackupVersion is PUT /room_keys/version/{version}.
func (s *Server) putBackupVersion(r *request) (any, error) {
	body, err := r.backupVersionBody()
	if err != nil {
		return nil, err
	}
	version := r.PathValue("version")
	if body.Version != "" && body.Version != version {
		return nil, invalidParam("version differs from the one in the path")
	}
	b, err := s.deps.Store.Backup(r.Context(), r.user, version)
	if err != nil {
		return nil, noBackup(err)
	}
	if b.Algorithm != body.Algorithm {
		return nil, invalidParam("the algorithm of a version cannot change")
	}
	return nil, s.deps.Store.SetBackupAuth(r.Context(), r.user, version, body.AuthData)
}

// deleteBackupVersion is DELETE /room_keys/version/{version}.
func (s *Server) deleteBackupVersion(r *request) (any, error) {
	return nil, noBackup(s.deps.Store.DeleteBackup(r.Context(), r.user, r.PathValue("version")))
}

// A backupKey is a backed-up key on the wire.
type backupKey struct {
	FirstMessageIndex *int64          `json:"first_message_index"`
	ForwardedCount    *int64          `json:"forwarded_count"`
	IsVerified        *bool           `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

// A backupRoom is the backed-up keys of one room on the wire.
type backupRoom struct {
	Sessions map[string]backupKey `json:"sessions"`
}

func (k backupKey) record(room matrix.RoomID, session string) (matrix.BackupKey, error) {
	if k.FirstMessageIndex == nil || k.ForwardedCount == nil || k.IsVerified == nil || len(k.SessionData) == 0 {
		return matrix.BackupKey{}, missingParam("first_message_index, forwarded_count, is_verified and session_data are needed")
	}
	if k.SessionData[0] != '{' {
		return matrix.BackupKey{}, badJSON("session_data must be an object")
	}
	return matrix.BackupKey{
		Room: room, Session: session, FirstMessageIndex: *k.FirstMessageIndex,
		ForwardedCount: *k.ForwardedCount, IsVerified: *k.IsVerified, SessionData: k.SessionData,
	}, nil
}

// readRoomKeys reads the body of the three forms of PUT /room_keys/keys.
func (r *request) readRoomKeys() ([]matrix.BackupKey, error) {
	room, session := matrix.RoomID(r.PathValue("roomId")), r.PathValue("sessionId")
	rooms := map[matrix.RoomID]backupRoom{}
	switch {
	case session != "":
		var k backupKey
		if err := r.decode(&k); err != nil {
			return nil, err
		}
		rooms[room] = backupRoom{map[string]backupKey{session: k}}
	case room != "":
		var b backupRoom
		if err := r.decode(&b); err != nil {
			return nil, err
		}
		if b.Sessions == nil {
			return nil, missingParam("sessions is needed")
		}
		rooms[room] = b
	default:
		var body struct {
			Rooms map[matrix.RoomID]backupRoom `json:"rooms"`
		}
		if err := r.decode(&body); err != nil {
			return nil, err
		}
		if body.Rooms == nil {
			return nil, missingParam("rooms is needed")
		}
		rooms = body.Rooms
	}
	var keys []matrix.BackupKey
	for room, b := range rooms {
		for session, k := range b.Sessions {
			rec, err := k.record(room, session)
			if err != nil {
				return nil, err
			}
			keys = append(keys, rec)
		}
	}
	return keys, nil
}

// queryVersion returns the version that a request about keys must name.
func (r *request) queryVersion() (string, error) {
	v := r.URL.Query().Get("version")
	if v == "" {
		return "", missingParam("version is needed")
	}
	return v, nil
}

// putRoomKeys is PUT /room_keys/keys[/{roomId}[/{sessionId}]].
func (s *Server) putRoomKeys(r *request) (any, error) {
	version, err := r.queryVersion()
	if err != nil {
		return nil, err
	}
	keys, err := r.readRoomKeys()
	if err != nil {
		return nil, err
	}
	b, err := s.deps.Store.PutBackupKeys(r.Context(), r.user, version, keys)
	if errors.Is(err, call.ErrConflict) {
		current, err := s.deps.Store.Backup(r.Context(), r.user, "")
		if err != nil {
			return nil, noBackup(err)
		}
		return nil, &matrix.Error{
			Status: http.StatusForbidden, Code: matrix.CodeWrongKeys, Message: "this is not the current backup version",
			Extra: map[string]any{"current_version": current.Version},
		}
	}
	if err != nil {
		return nil, noBackup(err)
	}
	return map[string]any{"etag": b.ETag, "count": b.Count}, nil
}

// getRoomKeys is GET /room_keys/keys[/{roomId}[/{sessionId}]].
func (s *Server) getRoomKeys(r *request) (any, error) {
	version, err := r.queryVersion()
	if err != nil {
		return nil, err
	}
	room, session := matrix.RoomID(r.PathValue("roomId")), r.PathValue("sessionId")
	keys, err := s.deps.Store.BackupKeys(r.Context(), r.user, version, room, session)
	if err != nil {
		return nil, noBackup(err)
	}
	rooms := map[matrix.RoomID]backupRoom{}
	for _, k := range keys {
		if rooms[k.Room].Sessions == nil {
			rooms[k.Room] = backupRoom{map[string]backupKey{}}
		}
		rooms[k.Room].Sessions[k.Session] = backupKey{&k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified, k.SessionData}
	}
	switch {
	case session != "":
		k, ok := rooms[room].Sessions[session]
		if !ok {
			return nil, notFound("no such key in this backup")
		}
		return k, nil
	case room != "":
		if rooms[room].Sessions == nil {
			return backupRoom{map[string]backupKey{}}, nil
		}
		return rooms[room], nil
	}
	return map[string]any{"rooms": rooms}, nil
}

// deleteRoomKeys is DELETE /room_keys/keys[/{roomId}[/{sessionId}]].
func (s *Server) deleteRoomKeys(r *request) (any, error) {
	version, err := r.queryVersion()
	if err != nil {
		return nil, err
	}
	b, err := s.deps.Store.DeleteBackupKeys(r.Context(), r.user, version, matrix.RoomID(r.PathValue("roomId")), r.PathValue("sessionId"))
	if err != nil {
		return nil, noBackup(err)
	}
	return map[string]any{"etag": b.ETag, "count": b.Count}, nil
}
