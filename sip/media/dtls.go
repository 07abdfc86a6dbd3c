package media

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/fingerprint"
	"github.com/pion/srtp/v3"
	"github.com/pion/transport/v5/packetio"
)

// handshakeTime is how long DTLS may take. It may begin long before the other side has
// answered the call and learnt where we are.
const handshakeTime = 2 * time.Minute

// fingerprint returns that of our certificate as SDP has it (RFC 8122).
func (p *Pool) fingerprint() string {
	sum := sha256.Sum256(p.cert.Certificate[0])
	hex := make([]string, len(sum))
	for i, b := range sum {
		hex[i] = fmt.Sprintf("%02X", b)
	}
	return "sha-256 " + strings.Join(hex, ":")
}

// association is DTLS-SRTP with the other side (RFC 5764), one handshake for RTP and
// one for RTCP unless that is on the same port.
type association struct {
	prints []string
	active bool
	links  [2]*link // RTP, RTCP
	cancel context.CancelFunc
	broken atomic.Bool
	done   chan struct{} // closed when both handshakes have ended
	conns  [2]*dtls.Conn // read after done
}

// link is the net.PacketConn that a handshake runs over.
type link struct {
	s       *Session
	control bool
	in      *packetio.Buffer
}

func (l *link) ReadFrom(b []byte) (int, net.Addr, error) {
	n, _, err := l.in.Read(b, nil)
	return n, l.LocalAddr(), err
}

func (l *link) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), l.s.out.raw(b, l.control) }
func (l *link) Close() error                              { return l.in.Close() }
func (l *link) LocalAddr() net.Addr                       { return l.s.rtp.LocalAddr() }
func (l *link) SetDeadline(t time.Time) error             { return l.SetReadDeadline(t) }
func (l *link) SetReadDeadline(t time.Time) error         { return l.in.SetReadDeadline(t) }
func (l *link) SetWriteDeadline(time.Time) error          { return nil }

// associate begins the handshakes of a plan, unless they are under way already. The
// caller holds s.mu.
func (s *Session) associate(p *plan) {
	if a := s.tls; a != nil {
		if slices.Equal(a.prints, p.fingerprint) && a.active == p.active && (p.mux || a.links[1] != nil) {
			return
		}
		s.in.open, s.in.openRTCP = nil, nil
		s.out.dropKeys()
		s.wg.Go(a.close)
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	a := &association{prints: p.fingerprint, active: p.active, cancel: cancel, done: make(chan struct{})}
	a.links[0] = &link{s: s, in: packetio.NewBuffer()}
	if !p.mux {
		a.links[1] = &link{s: s, in: packetio.NewBuffer(), control: true}
	}
	for _, l := range a.links {
		if l != nil {
			l.in.SetLimitCount(32)
		}
	}
	s.tls = a
	s.wg.Go(func() { s.agree(ctx, a) })
}

// agree runs the handshakes.
func (s *Session) agree(ctx context.Context, a *association) {
	defer close(a.done)
	ends := make(chan error, 2)
	count := 0
	for i, l := range a.links {
		if l == nil {
			continue
		}
		count++
		s.wg.Go(func() {
			conn, err := s.agreeOn(ctx, a, l)
			a.conns[i] = conn
			ends <- err
		})
	}
	for range count {
		if err := <-ends; err != nil && !s.ended.Load() && !errors.Is(ctx.Err(), context.Canceled) {
			a.broken.Store(true)
			s.log.Info("sip media: DTLS failed", "err", err)
		}
	}
}

func (s *Session) agreeOn(ctx context.Context, a *association, l *link) (*dtls.Conn, error) {
	opts := []dtls.Option{
		dtls.WithCertificates(s.pool.cert),
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM,
			dtls.SRTP_AES128_CM_HMAC_SHA1_80, dtls.SRTP_AES128_CM_HMAC_SHA1_32),
		dtls.WithInsecureSkipVerify(true), // certificates are self-signed; the fingerprint counts
		dtls.WithVerifyPeerCertificate(func(raw [][]byte, _ [][]*x509.Certificate) error {
			return vouched(raw, a.prints)
		}),
	}
	var conn *dtls.Conn
	var err error
	if a.active {
		client := make([]dtls.ClientOption, len(opts))
		for i, o := range opts {
			client[i] = o
		}
		conn, err = dtls.ClientWithOptions(l, l.LocalAddr(), client...)
	} else {
		server := []dtls.ServerOption{dtls.WithClientAuth(dtls.RequireAnyClientCert), dtls.WithInsecureSkipVerifyHello(true)}
		for _, o := range opts {
			server = append(server, o)
		}
		conn, err = dtls.ServerWithOptions(l, l.LocalAddr(), server...)
	}
	if err != nil {
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	seal, open, err := contexts(conn, a.active)
	if err != nil {
		return conn, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tls != a {
		return conn, nil
	}
	switch {
	case l.control:
		s.in.openRTCP = open
		s.out.setKeys(nil, seal)
	case a.links[1] == nil:
		s.in.open, s.in.openRTCP = open, open
		s.out.setKeys(seal, seal)
	default:
		s.in.open = open
		s.out.setKeys(seal, nil)
	}
	return conn, nil
}

// contexts makes SRTP contexts of the keys that DTLS agreed on.
func contexts(conn *dtls.Conn, active bool) (seal, open *srtp.Context, err error) {
	profile, ok := conn.SelectedSRTPProtectionProfile()
	if !ok {
		return nil, nil, errors.New("the other side has no SRTP profile")
	}
	state, ok := conn.ConnectionState()
	if !ok {
		return nil, nil, errors.New("no DTLS state")
	}
	cfg := srtp.Config{Profile: srtp.ProtectionProfile(profile)}
	if err := cfg.ExtractSessionKeysFromDTLS(&state, active); err != nil {
		return nil, nil, fmt.Errorf("DTLS keys: %w", err)
	}
	if seal, err = srtp.CreateContext(cfg.Keys.LocalMasterKey, cfg.Keys.LocalMasterSalt, cfg.Profile); err != nil {
		return nil, nil, err
	}
	open, err = srtp.CreateContext(cfg.Keys.RemoteMasterKey, cfg.Keys.RemoteMasterSalt, cfg.Profile,
		srtp.SRTPReplayProtection(replayWindow), srtp.SRTCPReplayProtection(replayWindow))
	return seal, open, err
}

// vouched says whether a certificate has one of the fingerprints of the description.
func vouched(raw [][]byte, prints []string) error {
	if len(raw) == 0 {
		return errors.New("no certificate")
	}
	cert, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	for _, p := range prints {
		name, want, _ := strings.Cut(p, " ")
		hash := map[string]crypto.Hash{"sha-256": crypto.SHA256, "sha-384": crypto.SHA384, "sha-512": crypto.SHA512}[name]
		if !hash.Available() {
			continue
		}
		got, err := fingerprint.Fingerprint(cert, hash)
		if err == nil && subtle.ConstantTimeCompare([]byte(strings.ToUpper(got)), []byte(want)) == 1 {
			return nil
		}
	}
	return errors.New("the certificate is not the one that the description promised")
}

// handshake takes a DTLS packet.
func (s *Session) handshake(b []byte, from netip.AddrPort, control bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tls == nil {
		return
	}
	l := s.tls.links[0]
	if control {
		l = s.tls.links[1]
	}
	if l == nil {
		return
	}
	in := &s.in
	if peer := in.latch.source; !in.latch.allowed(from.Addr()) || peer.IsValid() && peer.Addr() != from.Addr() {
		in.latch.strangers++
		return
	}
	// Behind NAT this is the first that we learn of where they are. It is theirs only
	// once the handshake has succeeded, but the answer has to go somewhere: to an
	// allowed network.
	switch to := in.latch.destination(); {
	case control && !s.controlTo().IsValid():
		s.out.aim(to, from)
	case !control && !to.IsValid():
		s.out.aim(from, s.controlTo())
	}
	_, _ = l.in.Write(b, nil) // full: DTLS repeats it
}

// failed says whether a handshake has ended without keys.
func (a *association) failed() bool { return a != nil && a.broken.Load() }

// close ends the handshakes, or what became of them.
func (a *association) close() {
	if a == nil {
		return
	}
	a.cancel()
	for _, l := range a.links {
		if l != nil {
			_ = l.Close()
		}
	}
	<-a.done
	for _, c := range a.conns {
		if c != nil {
			_ = c.Close() // the other side may be gone
		}
	}
}
