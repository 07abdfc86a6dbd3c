package phones

import (
	"fmt"
	"strings"
	"testing"
)

// Signalling over TLS and sound over SRTP, with both ways of agreeing on keys.
func TestEncryptedPhones(t *testing.T) {
	p := everybody(t)
	p.Launch(t, "alice", alice)
	required := StartGateway(t, GatewayOptions{Phones: "srtp: require"})
	optional := StartGateway(t, GatewayOptions{Phones: "srtp: optional"})
	for _, c := range []struct {
		name, transport, encrypt, srtp string
		g                              *Gateway
	}{
		{"SDES over TLS", "tls", "srtp-mand", "sdes", required},
		{"DTLS over TLS", "tls", "dtls_srtp", "dtls", required},
		{"SDES over UDP", "udp", "srtp-mand", "sdes", optional},
		{"none over TLS", "tls", "", "", optional},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := c.g
			number, room := g.Room()
			a := p.Join(t, g.Server, "alice", "alice", room, true)
			cert, key := certificate(t)
			phone := StartPhone(t, PhoneOptions{
				Name: "phone", User: "+493055512345", Transport: c.transport, Encrypt: c.encrypt, Says: Tone(phoneHz, long),
				CertFile: joined(t, cert, key), CAFile: g.CAFile,
			})
			to := g.URI(number)
			if c.transport == "tls" {
				to = fmt.Sprintf("sip:%s@%s;transport=tls", number, g.TLS)
			}
			phone.Dial(to)
			phone.Must("CALL_ESTABLISHED")
			who := a.Phone("the telephone", nil).Identity
			hears(t, "the phone hears alice", 523, phone.Listen)
			hears(t, "alice hears the phone", phoneHz, a.listenTo(who))
			for _, l := range g.overview(t).Legs {
				if l.Room == room && l.SRTP != c.srtp {
					t.Errorf("the leg's sound is encrypted by %q", l.SRTP)
				}
			}
			phone.Hangup()
			a.Alone()
		})
	}
	g := required
	t.Run("refused without encryption", func(t *testing.T) {
		number, _ := g.Room()
		phone := StartPhone(t, PhoneOptions{Name: "phone", User: "+493055512345"})
		phone.Dial(g.URI(number))
		if e := phone.Must("CALL_CLOSED"); !strings.Contains(e.Param, "488") {
			t.Errorf("a phone without SRTP was told %q", e.Param)
		}
	})
	t.Run("refused by a phone that does not know the certificate", func(t *testing.T) {
		number, room := g.Room()
		cert, key := certificate(t)
		phone := StartPhone(t, PhoneOptions{Name: "phone", Transport: "tls", CertFile: joined(t, cert, key), CAFile: cert, Config: "sip_verify_server yes"})
		phone.Dial(fmt.Sprintf("sip:%s@%s;transport=tls", number, g.TLS))
		phone.Must("CALL_CLOSED")
		g.Phones(t, room, 0)
	})
}
