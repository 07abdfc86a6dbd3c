package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/matrix"
)

// Users manages the accounts of a data directory. It works on the database when
// nothing runs there and asks the running server otherwise.
type Users interface {
	// Add creates an account and returns its full user ID.
	Add(ctx context.Context, localpart, password string, admin bool) (string, error)
	// SetPassword replaces the password of a localpart or full user ID and ends
	// its sessions.
	SetPassword(ctx context.Context, user, password string) error
	// List returns every account but guests, in the order of their names.
	List(ctx context.Context) ([]UserInfo, error)
	Close() error
}

// UserInfo is one account as the user commands show it.
type UserInfo struct {
	ID          string    `json:"user_id"`
	Admin       bool      `json:"admin"`
	Deactivated bool      `json:"deactivated"`
	Created     time.Time `json:"created"`
}

// OpenUsers returns the accounts of the data directory of cfg.
func OpenUsers(ctx context.Context, cfg config.Config, log *slog.Logger) (Users, error) {
	lock, err := lockDir(cfg.DataDir)
	if errors.Is(err, ErrInUse) {
		return dialUsers(cfg.DataDir, err)
	}
	if err != nil {
		return nil, err
	}
	db, err := openDatabase(ctx, cfg.DataDir, log)
	if err != nil {
		_ = lock.release()
		return nil, err
	}
	home, err := homeserver.New(cfg.Homeserver, homeserver.Deps{
		Store:     db,
		Endpoints: func() homeserver.Endpoints { return homeserver.Endpoints{} },
		MediaDir:  filepath.Join(cfg.DataDir, "media"),
		Log:       log,
	})
	if err != nil {
		_ = db.Close()
		_ = lock.release()
		return nil, err
	}
	return &offlineUsers{localUsers{home}, func() error { return errors.Join(db.Close(), lock.release()) }}, nil
}

type offlineUsers struct {
	localUsers
	close func() error
}

func (u *offlineUsers) Close() error { return u.close() }

// localUsers are the accounts of a homeserver in this process.
type localUsers struct{ home *homeserver.Server }

func (u localUsers) Add(ctx context.Context, localpart, password string, admin bool) (string, error) {
	id, err := u.home.CreateUser(ctx, localpart, password, admin)
	return string(id), err
}

func (u localUsers) SetPassword(ctx context.Context, user, password string) error {
	return u.home.SetPassword(ctx, u.fullID(user), password)
}

func (u localUsers) List(ctx context.Context) ([]UserInfo, error) {
	users, err := u.home.ListUsers(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]UserInfo, 0, len(users))
	for _, user := range users {
		infos = append(infos, UserInfo{
			ID:          string(user.ID),
			Admin:       user.Admin,
			Deactivated: user.Deactivated,
			Created:     user.Created,
		})
	}
	slices.SortFunc(infos, func(a, b UserInfo) int { return strings.Compare(a.ID, b.ID) })
	return infos, nil
}

func (u localUsers) Close() error { return nil }

// fullID makes "alice" the user ID "@alice:example.org".
func (u localUsers) fullID(user string) matrix.UserID {
	if strings.HasPrefix(user, "@") {
		return matrix.UserID(user)
	}
	return matrix.UserID("@" + user + ":" + string(u.home.ServerName()))
}

// adminSocket is the name of the Unix socket in the data directory. Only the
// owner of the directory can reach it.
const adminSocket = "admin.sock"

// An adminRequest is one user or phone command on its way to the running server.
type adminRequest struct {
	Do       string        `json:"do"` // add, passwd, list, phones.check ...
	User     string        `json:"user,omitempty"`
	Password string        `json:"password,omitempty"`
	Admin    bool          `json:"admin,omitempty"`
	Phones   *phoneRequest `json:"phones,omitempty"`
}

type adminReply struct {
	UserID string          `json:"user_id,omitempty"`
	Users  []UserInfo      `json:"users,omitempty"`
	Result json.RawMessage `json:"result,omitempty"` // of a phones command
	Error  string          `json:"error,omitempty"`
}

// An admin answers user and phone commands on a Unix socket.
type admin struct {
	ln   net.Listener // nil when the path is too long for a socket
	http *http.Server
}

func newAdmin(dir string, users Users, phones runningPhones, log *slog.Logger) (*admin, error) {
	name := filepath.Join(dir, adminSocket)
	a := &admin{}
	_ = os.Remove(name) // left by a kill; we hold the lock of the directory
	ln, err := net.Listen("unix", name)
	if err != nil {
		// Some systems allow no more than about 100 bytes.
		log.Warn("user commands need the server stopped: no admin socket", "err", err)
		return a, nil
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	a.ln = ln
	a.http = &http.Server{
		ReadTimeout: 10 * time.Second,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var req adminRequest
			reply := adminReply{Error: "not understood"}
			if json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req) == nil {
				reply = answerAdmin(r.Context(), users, phones, req)
			}
			_ = json.NewEncoder(w).Encode(reply)
		}),
	}
	return a, nil
}

func answerAdmin(ctx context.Context, users Users, phones runningPhones, req adminRequest) (reply adminReply) {
	err := fmt.Errorf("unknown command %q", req.Do)
	switch req.Do {
	case "add":
		reply.UserID, err = users.Add(ctx, req.User, req.Password, req.Admin)
	case "passwd":
		err = users.SetPassword(ctx, req.User, req.Password)
	case "list":
		reply.Users, err = users.List(ctx)
	default:
		if strings.HasPrefix(req.Do, phonesPrefix) && req.Phones != nil {
			reply.Result, err = phones.reply(ctx, req.Do, *req.Phones)
		}
	}
	if err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// run serves until ctx ends.
func (a *admin) run(ctx context.Context) error {
	if a.ln == nil {
		<-ctx.Done()
		return nil
	}
	served := make(chan error, 1)
	go func() { served <- a.http.Serve(a.ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	err := a.http.Close()
	<-served
	return err
}

// remoteUsers are the accounts of a server that runs in another process.
type remoteUsers struct{ http *http.Client }

func dialUsers(dir string, inUse error) (Users, error) {
	name := filepath.Join(dir, adminSocket)
	if _, err := os.Stat(name); err != nil {
		return nil, inUse
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", name)
		},
	}
	return &remoteUsers{&http.Client{Transport: transport, Timeout: 30 * time.Second}}, nil
}

func (u *remoteUsers) ask(ctx context.Context, req adminRequest) (adminReply, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return adminReply{}, err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://trunkhall/", bytes.NewReader(body))
	if err != nil {
		return adminReply{}, err
	}
	resp, err := u.http.Do(hr)
	if err != nil {
		return adminReply{}, fmt.Errorf("ask the running server: %w", err)
	}
	defer resp.Body.Close()
	var reply adminReply
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return adminReply{}, fmt.Errorf("read the running server's answer: %w", err)
	}
	if reply.Error != "" {
		return adminReply{}, errors.New(reply.Error)
	}
	return reply, nil
}

func (u *remoteUsers) Add(ctx context.Context, localpart, password string, admin bool) (string, error) {
	reply, err := u.ask(ctx, adminRequest{Do: "add", User: localpart, Password: password, Admin: admin})
	return reply.UserID, err
}

func (u *remoteUsers) SetPassword(ctx context.Context, user, password string) error {
	_, err := u.ask(ctx, adminRequest{Do: "passwd", User: user, Password: password})
	return err
}

func (u *remoteUsers) List(ctx context.Context) ([]UserInfo, error) {
	reply, err := u.ask(ctx, adminRequest{Do: "list"})
	return reply.Users, err
}

func (u *remoteUsers) Close() error { return nil }
