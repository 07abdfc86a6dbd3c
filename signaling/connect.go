package signaling

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
)

const (
	maxJoinRequest = 1 << 20   // bytes, inflated
	maxNameLen     = 256       // bytes of an identity, a room's or a person's name
	maxMetadata    = 512 << 10 // bytes
	maxAttributes  = 64 << 10  // bytes, keys and values together
)

// joining is everything a client says when it connects.
type joining struct {
	grant      call.Grant
	roomConfig *livekit.RoomConfiguration // for the room that this join creates

	single    bool // one peer connection
	reconnect bool
	sid       call.ParticipantSID // with reconnect

	client         *livekit.ClientInfo
	autoSubscribe  bool
	adaptiveStream bool
	allowPause     *bool // nil: as the server is configured

	addTracks []*livekit.AddTrackRequest
	offer     *livekit.SessionDescription
	syncState *livekit.SyncState
}

// parseJoining reads token and parameters of a connection or validation. On
// the v1 path a join_request is required, on the other it is optional.
func (s *Server) parseJoining(r *http.Request, v1 bool) (*joining, *refusal) {
	if err := r.ParseForm(); err != nil {
		return nil, refuse(http.StatusBadRequest, "malformed query")
	}
	c, bad := s.authenticate(r)
	if bad != nil {
		return nil, bad
	}
	if c == nil || c.Video == nil { // before anything is said of the other parameters
		return nil, refuse(http.StatusUnauthorized, "no permissions to access the room")
	}
	j := &joining{}
	var own ownState
	if wrapped := r.Form.Get("join_request"); wrapped != "" {
		own, bad = j.readJoinRequest(wrapped)
	} else if v1 {
		bad = refuse(http.StatusBadRequest, "join_request is required")
	} else {
		own, bad = j.readQuery(r.Form)
	}
	if bad != nil {
		return nil, bad
	}
	if bad := j.authorise(c); bad != nil {
		return nil, bad
	}
	if bad := j.applyOwnState(own); bad != nil {
		return nil, bad
	}
	if suffix := r.Form.Get("publish"); suffix != "" && !j.single {
		// Very old clients publish over a second connection.
		if !j.grant.CanPublish {
			return nil, refuse(http.StatusUnauthorized, "permissions denied")
		}
		j.grant.Identity += call.Identity("#" + suffix)
		j.grant.CanSubscribe = false
		if len(j.grant.Identity) > maxNameLen {
			return nil, refuse(http.StatusBadRequest, "participant identity length exceeds limits")
		}
	}
	completeClient(j.client, r)
	return j, nil
}

// authenticate returns the verified claims of the request's token, nil if it
// has none.
func (s *Server) authenticate(r *http.Request) (*claims, *refusal) {
	token := r.Form.Get("access_token")
	if header := r.Header.Get("Authorization"); header != "" {
		var ok bool
		if token, ok = strings.CutPrefix(header, "Bearer "); !ok {
			return nil, refuse(http.StatusUnauthorized, "invalid authorization header. Must start with Bearer ")
		}
	}
	if token == "" {
		return nil, nil
	}
	c, err := s.verify(token)
	if err != nil {
		return nil, refuse(http.StatusUnauthorized, "invalid authorization token: "+err.Error())
	}
	return c, nil
}

// authorise takes the grant out of the claims and checks that it is one for
// joining a room.
func (j *joining) authorise(c *claims) *refusal {
	if !c.Video.RoomJoin {
		return refuse(http.StatusUnauthorized, "permissions denied")
	}
	j.grant = c.grant()
	j.roomConfig = c.roomConfig()
	switch {
	case j.grant.Identity == "":
		return refuse(http.StatusBadRequest, "identity cannot be empty")
	case len(j.grant.Identity) > maxNameLen:
		return refuse(http.StatusBadRequest, "participant identity length exceeds limits")
	case j.grant.Room == "":
		return refuse(http.StatusBadRequest, "no room name")
	case len(j.grant.Room) > maxNameLen:
		return refuse(http.StatusBadRequest, "room name length exceeds limits")
	case len(j.grant.Name) > maxNameLen, len(j.grant.Metadata) > maxMetadata, attributesSize(j.grant.Attrs) > maxAttributes:
		return refuse(http.StatusBadRequest, "participant name, metadata or attributes exceed limits")
	}
	return nil
}

// ownState is what a participant says of itself while joining.
type ownState struct {
	metadata   string
	attributes map[string]string
}

// applyOwnState lays the participant's own words over the token's. They can
// not delete what the token says.
func (j *joining) applyOwnState(own ownState) *refusal {
	if own.metadata == "" && len(own.attributes) == 0 {
		return nil
	}
	if !j.grant.CanUpdateOwnMetadata {
		return refuse(http.StatusUnauthorized, "participant is not allowed to update its own metadata")
	}
	if own.metadata != "" {
		j.grant.Metadata = own.metadata
	}
	attrs := maps.Clone(j.grant.Attrs)
	for key, value := range own.attributes {
		if value == "" {
			continue
		}
		if attrs == nil {
			attrs = make(map[string]string)
		}
		attrs[key] = value
	}
	j.grant.Attrs = attrs
	if len(j.grant.Metadata) > maxMetadata || attributesSize(attrs) > maxAttributes {
		return refuse(http.StatusBadRequest, "participant metadata or attributes exceed limits")
	}
	return nil
}

func attributesSize(attrs map[string]string) int {
	n := 0
	for key, value := range attrs {
		n += len(key) + len(value)
	}
	return n
}

// readJoinRequest reads the join_request parameter: base64url of a
// WrappedJoinRequest, in it a JoinRequest, perhaps gzipped.
func (j *joining) readJoinRequest(parameter string) (ownState, *refusal) {
	request, err := decodeJoinRequest(parameter)
	if err != nil {
		return ownState{}, refuse(http.StatusBadRequest, err.Error())
	}
	j.single = true
	j.reconnect = request.GetReconnect()
	j.sid = call.ParticipantSID(request.GetParticipantSid())
	j.client = request.GetClientInfo()
	if j.client == nil {
		j.client = &livekit.ClientInfo{}
	}
	settings := request.GetConnectionSettings()
	if settings == nil {
		settings = &livekit.ConnectionSettings{AutoSubscribe: true}
	}
	j.autoSubscribe = settings.GetAutoSubscribe()
	j.adaptiveStream = settings.GetAdaptiveStream()
	j.allowPause = settings.SubscriberAllowPause
	j.addTracks = request.GetAddTrackRequests()
	j.offer = request.GetPublisherOffer()
	j.syncState = request.GetSyncState()
	return ownState{request.GetMetadata(), request.GetParticipantAttributes()}, nil
}

// decodeJoinRequest unwraps a join_request parameter. Its errors are meant for
// the client.
func decodeJoinRequest(parameter string) (*livekit.JoinRequest, error) {
	// Clients pad, but some proxies and hand-made clients do not.
	packed, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parameter, "="))
	if err != nil {
		return nil, errors.New("cannot base64 decode wrapped join request")
	}
	wrapped := &livekit.WrappedJoinRequest{}
	if err := proto.Unmarshal(packed, wrapped); err != nil {
		return nil, errors.New("cannot unmarshal wrapped join request")
	}
	inner := wrapped.GetJoinRequest()
	switch wrapped.GetCompression() {
	case livekit.WrappedJoinRequest_NONE:
	case livekit.WrappedJoinRequest_GZIP:
		if inner, err = gunzip(inner, maxJoinRequest); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("unknown compression of join request")
	}
	if len(inner) > maxJoinRequest {
		return nil, errors.New("join request is too large")
	}
	request := &livekit.JoinRequest{}
	if err := proto.Unmarshal(inner, request); err != nil {
		return nil, errors.New("cannot unmarshal join request")
	}
	return request, nil
}

// gunzip inflates at most limit bytes.
func gunzip(packed []byte, limit int64) ([]byte, error) {
	zip, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, errors.New("cannot decompress join request")
	}
	inflated, err := io.ReadAll(io.LimitReader(zip, limit+1))
	if err != nil {
		return nil, errors.New("cannot decompress join request")
	}
	if int64(len(inflated)) > limit {
		return nil, errors.New("join request is too large")
	}
	return inflated, nil
}

// readQuery reads the parameters of the dual-connection path.
func (j *joining) readQuery(q url.Values) (ownState, *refusal) {
	j.client = &livekit.ClientInfo{
		Sdk:            sdkByName(q.Get("sdk")),
		Version:        q.Get("version"),
		Protocol:       number(q.Get("protocol")),
		ClientProtocol: number(q.Get("client_protocol")),
		Os:             q.Get("os"),
		OsVersion:      q.Get("os_version"),
		DeviceModel:    q.Get("device_model"),
		Browser:        q.Get("browser"),
		BrowserVersion: q.Get("browser_version"),
		Network:        q.Get("network"),
	}
	for name := range strings.SplitSeq(q.Get("capabilities"), ",") {
		if c, ok := livekit.ClientInfo_Capability_value[name]; ok {
			j.client.Capabilities = append(j.client.Capabilities, livekit.ClientInfo_Capability(c))
		}
	}
	j.reconnect = yes(q.Get("reconnect"))
	j.sid = call.ParticipantSID(q.Get("sid"))
	j.autoSubscribe = q.Get("auto_subscribe") == "" || yes(q.Get("auto_subscribe"))
	j.adaptiveStream = yes(q.Get("adaptive_stream"))
	if q.Get("subscriber_allow_pause") != "" {
		j.allowPause = new(yes(q.Get("subscriber_allow_pause")))
	}
	var own ownState
	if encoded := q.Get("attributes"); encoded != "" {
		text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(encoded, "="))
		if err != nil || json.Unmarshal(text, &own.attributes) != nil {
			return own, refuse(http.StatusBadRequest, "cannot decode attributes")
		}
	}
	return own, nil
}

func yes(s string) bool { return s == "1" || s == "true" }

func number(s string) int32 {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func sdkByName(name string) livekit.ClientInfo_SDK {
	switch strings.ToLower(name) {
	case "reactnative":
		return livekit.ClientInfo_REACT_NATIVE
	case "unityweb":
		return livekit.ClientInfo_UNITY_WEB
	}
	return livekit.ClientInfo_SDK(livekit.ClientInfo_SDK_value[strings.ToUpper(name)])
}

// completeClient fills in what browser SDKs leave to the User-Agent header.
func completeClient(c *livekit.ClientInfo, r *http.Request) {
	agent := r.UserAgent()
	switch c.GetSdk() {
	case livekit.ClientInfo_JS, livekit.ClientInfo_UNITY_WEB:
	default:
		return
	}
	if c.Browser == "" {
		c.Browser, c.BrowserVersion = browserOf(agent)
	}
	if c.Os == "" {
		c.Os = systemOf(agent)
	}
}

// browserOf names the browser of a User-Agent header. The order matters: all
// of them claim to be Safari, most to be Chrome.
func browserOf(agent string) (name, version string) {
	for _, b := range []struct{ token, name string }{
		{"Edg/", "edge"}, {"OPR/", "opera"}, {"FxiOS/", "safari"}, {"CriOS/", "safari"},
		{"Firefox/", "firefox"}, {"Chrome/", "chrome"}, {"Version/", "safari"},
	} {
		if _, rest, ok := strings.Cut(agent, b.token); ok {
			version, _, _ = strings.Cut(rest, " ")
			return b.name, version
		}
	}
	return "", ""
}

func systemOf(agent string) string {
	for _, o := range []struct{ token, name string }{
		{"Android", "android"}, {"iPhone", "ios"}, {"iPad", "ios"},
		{"Windows", "windows"}, {"Mac OS X", "macos"}, {"CrOS", "chromeos"}, {"Linux", "linux"},
	} {
		if strings.Contains(agent, o.token) {
			return o.name
		}
	}
	return ""
}
