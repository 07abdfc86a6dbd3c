package node

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// buildPhones builds the telephone gateway between the SFU and the trunks, if
// there are any.
func (n *Node) buildPhones() (err error) {
	cfg := n.cfg.SIP
	if !cfg.On() {
		return nil
	}
	if cfg.Records.Dir == "" {
		cfg.Records.Dir = filepath.Join(n.cfg.DataDir, "calls")
	}
	directory := n.calls.PhoneDirectory()
	directory.SetDisplay(numbers.Display)
	n.phones, err = sip.New(cfg, sip.Deps{
		SFU:       n.sfu,
		Directory: directory,
		Store:     n.db,
		Secret:    []byte(n.secrets.PhoneSecret),
		Numbers:   directory.SetNumbers,
		Log:       n.log.With("part", "sip"),
	})
	if err != nil {
		return fmt.Errorf("sip: %w", err)
	}
	n.calls.SetPhones(n.phones)
	n.add("sip", n.phones.Run)
	for _, addr := range n.phones.Addrs() {
		n.log.Info("telephones", "listen", addr)
	}
	return nil
}

// phoneUser tells the HTTP API whose access token it is.
func (n *Node) phoneUser(ctx context.Context, token string) (user string, admin bool, err error) {
	id, admin, err := n.home.Authenticate(ctx, token)
	return string(id), admin, err
}

// Phones returns the telephone gateway, nil if it is switched off.
func (n *Node) Phones() *sip.Server { return n.phones }

var _ sip.Gateway = (*sip.Server)(nil)
var _ sip.Ager = sip.Static{}

// errNoPhones answers commands about telephones when there are none.
var errNoPhones = fmt.Errorf("telephones are switched off: configure sip.trunks or set sip.enabled: %w", call.ErrUnavailable)
