package signaling

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	openIDTime      = 5 * time.Second // for discovery and answer together
	maxOpenIDAnswer = 64 << 10        // bytes of one answer
	maxRedirects    = 3
	matrixPort      = 8448
)

// openIDVerifier asks other homeservers for the users of OpenID tokens. The
// server's name comes from a stranger, so connections go only to public
// addresses, whatever a name, a delegation or a redirect leads to: names are
// looked up here, the addresses are checked, and only they are dialled.
type openIDVerifier struct {
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	srv     func(ctx context.Context, service, host string) ([]*net.SRV, error)
	dial    func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	allowed func(netip.Addr) bool
	roots   *x509.CertPool // nil: the system's
	slots   chan struct{}  // as many verifications at a time
	limit   time.Duration  // for one verification
}

func newOpenIDVerifier() *openIDVerifier {
	var dialer net.Dialer
	return &openIDVerifier{
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		srv: func(ctx context.Context, service, host string) ([]*net.SRV, error) {
			_, records, err := net.DefaultResolver.LookupSRV(ctx, service, "tcp", host)
			return records, err
		},
		dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", to.String())
		},
		allowed: call.PublicUnicast,
		slots:   make(chan struct{}, 32),
		limit:   openIDTime,
	}
}

// verify returns the user for whom server issued token. A server vouches for
// its own users only.
func (v *openIDVerifier) verify(ctx context.Context, server matrix.ServerName, token string) (matrix.UserID, error) {
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return "", fmt.Errorf("too many verifications: %w", call.ErrUnavailable)
	}
	place, err := v.discover(ctx, string(server))
	if err != nil {
		return "", fmt.Errorf("find server %s: %w", server, err)
	}
	body, err := v.get(ctx, place, "/_matrix/federation/v1/openid/userinfo?access_token="+url.QueryEscape(token), 0)
	if err != nil {
		return "", fmt.Errorf("ask server %s: %w", server, err)
	}
	var info struct {
		Sub matrix.UserID `json:"sub"`
	}
	if err := json.Unmarshal(body, &info); err != nil {
		return "", fmt.Errorf("answer of server %s: %w", server, err)
	}
	if !strings.HasPrefix(string(info.Sub), "@") || len(info.Sub) > maxName || !printable(string(info.Sub)) {
		return "", fmt.Errorf("server %s answered no user ID: %w", server, call.ErrForbidden)
	}
	if info.Sub.Server() != server {
		return "", fmt.Errorf("server %s vouches for a user of %s: %w", server, info.Sub.Server(), call.ErrForbidden)
	}
	return info.Sub, nil
}

// A serverPlace is where a homeserver listens: who it is (Host header and TLS name)
// and where to connect.
type serverPlace struct {
	host    string // Host header
	connect []hostPort
}

type hostPort struct {
	host string // name or IP literal without brackets
	port int
}

// discover resolves a server name (Matrix server-server API, "Resolving server names").
func (v *openIDVerifier) discover(ctx context.Context, name string) (serverPlace, error) {
	hp, hasPort, err := splitServerName(name)
	if err != nil {
		return serverPlace{}, err
	}
	if isIP(hp.host) || hasPort { // steps 1 and 2
		return serverPlace{name, []hostPort{hp}}, nil
	}
	delegated := v.wellKnown(ctx, hp.host)
	if delegated == "" { // steps 4 to 6
		return serverPlace{name, v.services(ctx, hp.host)}, nil
	}
	hp, hasPort, err = splitServerName(delegated)
	if err != nil {
		return serverPlace{}, fmt.Errorf("delegated name: %w", err)
	}
	if isIP(hp.host) || hasPort { // steps 3.1 and 3.2
		return serverPlace{delegated, []hostPort{hp}}, nil
	}
	return serverPlace{delegated, v.services(ctx, hp.host)}, nil // steps 3.3 to 3.5
}

// wellKnown returns the name that host delegates to, or "": any error means
// that there is no delegation.
func (v *openIDVerifier) wellKnown(ctx context.Context, host string) string {
	ctx, cancel := context.WithTimeout(ctx, v.limit/2) // leave time to try port 8448
	defer cancel()
	body, err := v.get(ctx, serverPlace{host, []hostPort{{host, 443}}}, "/.well-known/matrix/server", maxRedirects)
	if err != nil {
		return ""
	}
	var doc struct {
		Server string `json:"m.server"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return ""
	}
	return doc.Server
}

// services returns where host's homeserver listens by its SRV records, or
// without any at host itself.
func (v *openIDVerifier) services(ctx context.Context, host string) []hostPort {
	for _, service := range []string{"matrix-fed", "matrix"} {
		records, err := v.srv(ctx, service, host)
		if err != nil || len(records) == 0 {
			continue
		}
		var all []hostPort
		for _, r := range records[:min(len(records), 4)] {
			all = append(all, hostPort{strings.TrimSuffix(r.Target, "."), int(r.Port)})
		}
		return all
	}
	return []hostPort{{host, matrixPort}}
}

// get fetches a path of a place over TLS and returns the body of a 200. It
// follows as many redirects, to https URLs only.
func (v *openIDVerifier) get(ctx context.Context, at serverPlace, path string, redirects int) ([]byte, error) {
	transport := &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: v.roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxOpenIDAnswer,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr == dialAddress(at.host) {
				return v.connect(ctx, at.connect)
			}
			hp, _, err := splitServerName(addr) // a redirect's target
			if err != nil {
				return nil, err
			}
			return v.connect(ctx, []hostPort{hp})
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > redirects {
			return errors.New("too many redirects")
		}
		if r.URL.Scheme != "https" || r.URL.User != nil {
			return errors.New("redirect to something that is not https")
		}
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+at.host+path, nil)
	if err != nil {
		return nil, errors.New("not a host name")
	}
	resp, err := client.Do(req)
	if err != nil {
		var wrapped *url.Error // its text has the URL, and that the token
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOpenIDAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxOpenIDAnswer {
		return nil, fmt.Errorf("answer is larger than %d bytes", maxOpenIDAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return body, nil
}

// connect dials the first of targets that answers, public addresses only.
func (v *openIDVerifier) connect(ctx context.Context, targets []hostPort) (net.Conn, error) {
	err := errors.New("no address")
	for _, t := range targets {
		if t.port < 1024 && t.port != 443 {
			err = fmt.Errorf("no homeserver listens on port %d: %w", t.port, call.ErrForbidden)
			continue
		}
		addrs, lookupErr := v.addresses(ctx, t.host)
		if lookupErr != nil {
			err = lookupErr
			continue
		}
		for _, a := range addrs[:min(len(addrs), 4)] {
			if a = a.Unmap(); !v.allowed(a) {
				err = fmt.Errorf("%s is not at a public address: %w", t.host, call.ErrForbidden)
				continue
			}
			conn, dialErr := v.dial(ctx, netip.AddrPortFrom(a, uint16(t.port)))
			if dialErr == nil {
				return conn, nil
			}
			err = dialErr
		}
	}
	return nil, err
}

func (v *openIDVerifier) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	return v.lookup(ctx, host)
}

// splitServerName splits a server name (Matrix appendices, "Server Name") into
// host and port, 8448 if it has none.
func splitServerName(name string) (hp hostPort, hasPort bool, err error) {
	bad := fmt.Errorf("%q is no server name: %w", name, call.ErrInvalid)
	if name == "" || len(name) > maxName {
		return hostPort{}, false, bad
	}
	host, port := name, ""
	if strings.HasPrefix(name, "[") {
		end := strings.IndexByte(name, ']')
		if end < 0 {
			return hostPort{}, false, bad
		}
		host, port = name[1:end], name[end+1:]
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() || a.Zone() != "" {
			return hostPort{}, false, bad
		}
		if port != "" && port[0] != ':' {
			return hostPort{}, false, bad
		}
		hasPort, port = port != "", strings.TrimPrefix(port, ":")
	} else {
		host, port, hasPort = strings.Cut(name, ":")
		for _, c := range host {
			if c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return hostPort{}, false, bad
			}
		}
		if host == "" {
			return hostPort{}, false, bad
		}
	}
	if !hasPort {
		return hostPort{host, matrixPort}, false, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || len(port) > 5 {
		return hostPort{}, false, bad
	}
	return hostPort{host, int(n)}, true, nil
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// dialAddress is what net/http dials for an https URL with this host.
func dialAddress(host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), "443")
}
