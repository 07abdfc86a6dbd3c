package trunk

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/trunkhall/trunkhall/call"
)

// Explain says what went wrong with a target, for people: code and reason of a
// final answer, or err if there was none. It returns "" if nothing did.
func Explain(uri string, t call.Trunk, code int, reason string, err error) string {
	return explain(uri, t, answer{code: code, reason: reason}, err)
}

func explain(uri string, t call.Trunk, a answer, err error) string {
	if err != nil {
		return unreachable(uri, err)
	}
	host := hostOf(uri)
	said := fmt.Sprintf("%d %s", a.code, printable(a.reason))
	switch {
	case a.code < 300:
		return ""
	case a.code < 400:
		return fmt.Sprintf("%s sends us elsewhere (%s): put the new address into targets", host, said)
	case (a.code == 401 || a.code == 407) && t.Auth.Password == "":
		return fmt.Sprintf("%s wants a password (%s), and auth.password is not set", host, said)
	case a.code == 401, a.code == 407:
		return fmt.Sprintf("%s does not accept user name and password (%s): check auth, and auth.realm if it is set", host, said)
	case a.code == 403:
		return fmt.Sprintf("%s refuses us (%s): wrong user name or password, a locked account, or our address is not on its list", host, said)
	case a.code == 404:
		return fmt.Sprintf("%s does not know us (%s): check register.aor", host, said)
	case a.code == 405, a.code == 501:
		return fmt.Sprintf("%s takes no registrations (%s): it is a trunk by address; remove register", host, said)
	case a.code == 408:
		return fmt.Sprintf("%s could not reach the provider behind it (%s)", host, said)
	case a.code == 423:
		return fmt.Sprintf("%s wants another register.expires (%s)", host, said)
	case a.code == 503:
		return fmt.Sprintf("%s is overloaded or out of service (%s)", host, said)
	case a.code >= 500:
		return fmt.Sprintf("%s has a fault of its own (%s)", host, said)
	}
	return fmt.Sprintf("%s answers %s", host, said)
}

// unreachable says why there was no answer at all.
func unreachable(uri string, err error) string {
	host := hostOf(uri)
	var (
		dns       *net.DNSError
		name      x509.HostnameError
		authority x509.UnknownAuthorityError
		cert      x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		network   net.Error
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("DNS: there is no host %s: check the spelling in targets", printable(dns.Name))
	case errors.As(err, &dns):
		return fmt.Sprintf("DNS: looking up %s does not work: %s", printable(dns.Name), printable(dns.Err))
	case errors.As(err, &name):
		return fmt.Sprintf("TLS: the certificate of %s is for another name (%s): use that name in targets", host, names(name.Certificate))
	case errors.As(err, &authority):
		return fmt.Sprintf("TLS: the certificate of %s is signed by nobody we trust: set sip.tls_ca_file if it is the provider's own", host)
	case errors.As(err, &cert) && cert.Reason == x509.Expired:
		return fmt.Sprintf("TLS: the certificate of %s is not valid now: it expired, or this machine's clock is wrong", host)
	case errors.As(err, &cert):
		return fmt.Sprintf("TLS: the certificate of %s is not valid: %s", host, printable(cert.Error()))
	case errors.As(err, &record):
		return fmt.Sprintf("TLS: %s does not speak TLS on that port: try port 5061, or transport=tcp", host)
	case errors.As(err, &alert):
		return fmt.Sprintf("TLS: %s ends the handshake: %s", host, printable(alert.Error()))
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("%s: nothing listens on that port: check port and transport in targets", host)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Sprintf("there is no way to %s: check this machine's network", host)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("%s does not answer within %d seconds: a firewall in between, a wrong port or transport, or it is down", host, int(answerLimit.Seconds()))
	}
	return fmt.Sprintf("%s cannot be reached: %s", host, printable(err.Error()))
}

func names(c *x509.Certificate) string {
	if c == nil {
		return "unknown"
	}
	all := c.DNSNames
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return printable(c.Subject.CommonName)
	}
	return printable(strings.Join(all[:min(len(all), 3)], ", "))
}

// printable keeps what others wrote fit for a log and a page.
func printable(s string) string {
	if len(s) > 200 {
		s = s[:200]
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}
