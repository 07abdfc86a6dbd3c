package homeserver

import "net/http"

// specVersions are the versions of the specification whose client endpoints
// are served. Clients switch features on by them, so none is claimed early:
// v1.12 wants room reporting, v1.15 OAuth metadata.
var specVersions = []string{"r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11"}

// unstableFeatures are announced in /versions; clients look for these names.
var unstableFeatures = map[string]bool{
	"org.matrix.msc4140":           true, // delayed events
	"org.matrix.msc4354":           true, // sticky events
	"org.matrix.msc4222":           true, // state_after in /sync
	"org.matrix.msc4143":           true, // RTC transports
	"org.matrix.e2e_cross_signing": true,
	"org.matrix.msc3916.stable":    true, // authenticated media
	"uk.tcpip.msc4133":             true, // profile fields
	"uk.tcpip.msc4133.stable":      true,
	"org.matrix.msc3881":           true, // pushers that can be switched off
}

// discoveryRoutes are the endpoints that tell a client where and what we are.
func (s *Server) discoveryRoutes() []route {
	return []route{
		{http.MethodGet, []string{"/_matrix/client/versions"}, accessPublic, limitNone, s.getVersions},
	}
}

// getVersions answers without looking at a token that may come along: calls in
// widgets ask from a page that has none.
func (s *Server) getVersions(*request) (any, error) {
	return map[string]any{"versions": specVersions, "unstable_features": unstableFeatures}, nil
}
