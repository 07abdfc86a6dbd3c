package homeserver

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

const (
	uiaLifetime = 15 * time.Minute
	uiaMax      = 5000     // open sessions; beyond it the oldest end first
	uiaMaxUser  = 20       // of them of one user
	uiaMaxBody  = 16 << 10 // bytes of a request that is remembered
)

// The stages of user-interactive authentication that we know.
const (
	stageDummy    = "m.login.dummy"
	stagePassword = "m.login.password"
	stageToken    = "m.login.registration_token"
)

// uiaSessions are the open sessions of user-interactive authentication. They do
// not outlive the process: clients start again. Safe for concurrent use.
type uiaSessions struct {
	mu   sync.Mutex
	open map[string]*uiaSession // guarded by mu, the sessions too
}

// A uiaSession remembers what its first request was for and which stages are done.
type uiaSession struct {
	user      matrix.UserID  // caller; empty: a stranger
	purpose   string         // method and path of the first request
	body      map[string]any // of the first request that had one, without auth
	completed []string
	expires   time.Time
}

// sweep ends sessions that are too old.
func (u *uiaSessions) sweep(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sweepLocked(now)
}

func (u *uiaSessions) sweepLocked(now time.Time) {
	for id, s := range u.open {
		if now.After(s.expires) {
			delete(u.open, id)
		}
	}
}

// take returns the session id of a user for a purpose, or a new one with its ID.
func (u *uiaSessions) take(id string, user matrix.UserID, purpose string, now time.Time) (string, *uiaSession) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.open[id]; s != nil && s.user == user && s.purpose == purpose && now.Before(s.expires) {
		return id, s
	}
	if len(u.open) >= uiaMax {
		u.sweepLocked(now)
		u.endOldest(uiaMax, func(*uiaSession) bool { return true })
	}
	if user != "" {
		u.endOldest(uiaMaxUser, func(s *uiaSession) bool { return s.user == user })
	}
	id = newToken("uia")
	s := &uiaSession{user: user, purpose: purpose, completed: []string{}, expires: now.Add(uiaLifetime)}
	u.open[id] = s
	return id, s
}

// endOldest ends the oldest of some sessions if there are limit of them already.
func (u *uiaSessions) endOldest(limit int, some func(*uiaSession) bool) {
	n, oldest := 0, ""
	for id, s := range u.open {
		if !some(s) {
			continue
		}
		n++
		if oldest == "" || s.expires.Before(u.open[oldest].expires) {
			oldest = id
		}
	}
	if n >= limit {
		delete(u.open, oldest)
	}
}

// bind ties a session to the body of its first request. It returns the body
// that counts, or false if the body is another one than the session is for.
func (u *uiaSessions) bind(s *uiaSession, body map[string]any, mayChange bool) (map[string]any, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case len(body) == 0:
		return s.body, true
	case len(s.body) == 0 || mayChange:
		s.body = body
		return body, true
	}
	return body, reflect.DeepEqual(s.body, body)
}

// complete notes a stage and reports whether that ends one of the flows; the
// session is then gone.
func (u *uiaSessions) complete(id string, s *uiaSession, stage string, flows [][]string) (done bool, completed []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if stage != "" && !slices.Contains(s.completed, stage) {
		s.completed = append(s.completed, stage)
	}
	for _, f := range flows {
		all := !slices.ContainsFunc(f, func(st string) bool { return !slices.Contains(s.completed, st) })
		if all && u.open[id] == s {
			delete(u.open, id)
			return true, nil
		}
	}
	return false, slices.Clone(s.completed)
}

// interactive runs user-interactive authentication (client-server API,
// "User-Interactive Authentication API") on a request whose body is raw. It
// returns the body to act upon: raw, or that of the session's first request if
// raw has only auth. mayChange lets the body differ between the requests.
func (s *Server) interactive(r *request, raw json.RawMessage, flows [][]string, mayChange bool) (json.RawMessage, error) {
	var body map[string]any
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	var auth struct {
		Auth *uiaAuth `json:"auth"`
	}
	if err := decodeJSON(raw, &auth); err != nil {
		return nil, err
	}
	delete(body, "auth")
	if auth.Auth == nil {
		auth.Auth = &uiaAuth{}
	}
	if len(raw) > uiaMaxBody {
		return nil, tooLarge("this request has at most %d bytes", uiaMaxBody)
	}
	if auth.Auth.Session == "" && r.user == "" {
		if err := s.allow(r, limitSession); err != nil {
			return nil, err
		}
	}
	id, session := s.uia.take(auth.Auth.Session, r.user, r.Method+" "+r.URL.EscapedPath(), time.Now())
	body, same := s.uia.bind(session, body, mayChange)
	if !same {
		return nil, forbidden("the request has changed since its authentication began")
	}
	stage := auth.Auth.Type
	var failed *matrix.Error
	if stage != "" {
		if !slices.ContainsFunc(flows, func(f []string) bool { return slices.Contains(f, stage) }) {
			failed = &matrix.Error{Code: matrix.CodeUnrecognized, Message: "this stage is not part of any flow"}
		} else if ok, err := s.checkStage(r, *auth.Auth); err != nil {
			return nil, err
		} else if !ok {
			failed = &matrix.Error{Code: matrix.CodeForbidden, Message: "authentication failed"}
		}
	}
	if failed != nil {
		stage = ""
	}
	done, completed := s.uia.complete(id, session, stage, flows)
	if done {
		return json.Marshal(body)
	}
	flowList := make([]map[string]any, len(flows))
	for i, f := range flows {
		flowList[i] = map[string]any{"stages": f}
	}
	reply := &matrix.Error{Status: http.StatusUnauthorized, Extra: map[string]any{
		"session": id, "flows": flowList, "params": map[string]any{}, "completed": completed,
	}}
	if failed != nil {
		reply.Code, reply.Message = failed.Code, failed.Message
	}
	return nil, reply
}

// A uiaAuth is the auth object of a request.
type uiaAuth struct {
	Type       string         `json:"type"`
	Session    string         `json:"session"`
	Token      string         `json:"token"`
	Identifier userIdentifier `json:"identifier"`
	User       string         `json:"user"` // older clients, instead of identifier
	Password   string         `json:"password"`
}

// checkStage reports whether the auth object passes its stage. An error ends the
// request, false lets the client try again.
func (s *Server) checkStage(r *request, a uiaAuth) (bool, error) {
	switch a.Type {
	case stageDummy:
		return true, nil
	case stageToken:
		if err := s.allowFor(r, limitLogin, r.addr()); err != nil {
			return false, err
		}
		return s.registrationTokenValid(a.Token), nil
	case stagePassword:
		name := a.Identifier.User
		if name == "" {
			name = a.User
		}
		if name != "" && s.fullUserID(name) != r.user {
			return false, forbidden("only the user of the access token can confirm this")
		}
		if err := s.allowFor(r, limitLoginAccount, string(r.user)); err != nil {
			return false, err
		}
		return s.passwordMatches(r.Context(), r.user, a.Password)
	}
	return false, nil
}

// registrationTokenValid compares with all tokens in constant time.
func (s *Server) registrationTokenValid(token string) bool {
	valid := 0
	for _, t := range s.cfg.RegistrationTokens {
		valid |= subtle.ConstantTimeCompare([]byte(t), []byte(token))
	}
	return valid == 1 && token != ""
}

// passwordMatches checks the password of an account.
func (s *Server) passwordMatches(ctx context.Context, user matrix.UserID, password string) (bool, error) {
	u, err := s.deps.Store.User(ctx, user)
	if err != nil {
		return false, err
	}
	return s.passwords.matches(ctx, u.PasswordHash, password)
}

// confirmSelf is the flow for dangerous things: the password again. Accounts
// without one (guests, accounts made without a password) confirm by m.login.dummy.
func (s *Server) confirmSelf(r *request, raw json.RawMessage) (json.RawMessage, error) {
	u, err := s.deps.Store.User(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	stage := stagePassword
	if u.PasswordHash == "" {
		stage = stageDummy
	}
	return s.interactive(r, raw, [][]string{{stage}}, false)
}
