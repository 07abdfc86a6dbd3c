package web

import (
	"crypto/tls"
	"os"
	"sync"
	"time"
)

// recheck is how often a certificate file is looked at for a newer one.
const recheck = time.Minute

// certificates serves a certificate from files and takes up a renewed one
// without a restart. A renewal that cannot be read leaves the old one in use.
type certificates struct {
	certFile, keyFile string

	mu       sync.Mutex // guards the following fields
	cert     *tls.Certificate
	changed  time.Time // modification time of certFile when it was read
	lookedAt time.Time
}

func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && time.Since(c.lookedAt) < recheck {
		return c.cert, nil
	}
	c.lookedAt = time.Now()
	info, err := os.Stat(c.certFile)
	if err == nil && c.cert != nil && info.ModTime().Equal(c.changed) {
		return c.cert, nil
	}
	var cert tls.Certificate
	if err == nil {
		cert, err = tls.LoadX509KeyPair(c.certFile, c.keyFile)
	}
	if err != nil {
		if c.cert != nil {
			return c.cert, nil
		}
		return nil, err
	}
	c.cert, c.changed = &cert, info.ModTime()
	return c.cert, nil
}
