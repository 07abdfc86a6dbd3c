package sip

import (
	"context"
	"net/netip"
	"slices"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/trunk"
)

// setLines makes trunks and rules those of now.
func (s *Server) setLines(all *lines) {
	if s.lines.Swap(all) != nil {
		s.background(s.meet) // a trunk may be new
	}
	var kept []trunk.Line
	for _, t := range all.trunks {
		kept = append(kept, trunk.Line{Trunk: t.Trunk, Source: t.source, Contact: t.token, Networks: t.networks})
	}
	s.trunks.Set(kept)
	s.learned()
	if s.deps.Numbers != nil {
		var list []string
		for _, n := range s.Numbers() {
			list = append(list, n.Number)
		}
		s.deps.Numbers(list)
	}
}

// meet looks up the targets of all trunks, so that their hosts are known.
func (s *Server) meet(ctx context.Context) {
	for _, t := range s.lines.Load().trunks {
		for _, target := range append(slices.Clone(t.Targets), t.Outbound) {
			if target == "" {
				continue
			}
			// One that cannot be found is reported where it is called.
			if hops, err := s.endpoint.Resolve(ctx, target); err == nil {
				s.met(t.ID, addrsOf(hops)...)
			}
		}
	}
}

// maxHosts bounds how many addresses of one trunk are known.
const maxHosts = 64

func addrsOf(hops []dialog.Hop) []netip.Addr {
	var all []netip.Addr
	for _, hop := range hops {
		all = append(all, hop.Addr.Addr())
	}
	return all
}

// met notes addresses of a trunk: of its targets, or from which a call came that
// proved to be the trunk's. Nothing is allowed to them but not to be shut out.
func (s *Server) met(trunk string, addrs ...netip.Addr) {
	if trunk == inlineTrunk {
		return
	}
	fresh := false
	s.mu.Lock()
	for _, ip := range addrs {
		ip = ip.Unmap()
		if have := s.hosts[trunk]; !slices.Contains(have, ip) {
			s.hosts[trunk] = append(have[max(0, len(have)-maxHosts+1):], ip)
			fresh = true
		}
	}
	s.mu.Unlock()
	if fresh {
		s.learned()
	}
}

// hostOf returns the trunk that is at an address.
func (s *Server) hostOf(all *lines, ip netip.Addr) (line, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range all.trunks {
		if slices.Contains(s.hosts[t.ID], ip) {
			return t, true
		}
	}
	return line{}, false
}

// learned spares the trunks' hosts from bans: their networks, where their
// registrars have answered from, and where we call them or they us.
func (s *Server) learned() {
	all := s.lines.Load()
	if all == nil {
		return
	}
	networks := all.networks()
	for _, t := range all.trunks {
		for _, ip := range s.trunks.Sources(t.ID) {
			networks = append(networks, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
		}
		s.mu.Lock()
		for _, ip := range s.hosts[t.ID] {
			networks = append(networks, netip.PrefixFrom(ip, ip.BitLen()))
		}
		s.mu.Unlock()
	}
	s.bans.SetTrunks(networks)
}

// trunkState describes a trunk as it does now.
func (s *Server) trunkState(t line) call.TrunkState {
	state := s.trunks.State(t.ID)
	state.Trunk, state.Source = t.Trunk, t.source
	state.Trunk.Auth.Password = ""
	state.Calls = s.limits.Calls(t.ID)
	return state
}

// RefreshTrunk registers and asks the targets of a trunk now, and returns the
// state after that.
func (s *Server) RefreshTrunk(ctx context.Context, id string) (call.TrunkState, error) {
	t, ok := s.lines.Load().trunk(id)
	if ok {
		if _, err := s.trunks.Refresh(ctx, id); err != nil {
			return call.TrunkState{}, err
		}
	}
	if !ok {
		_, err := s.trunks.Refresh(ctx, id) // says that there is none
		return call.TrunkState{}, err
	}
	return s.trunkState(t), nil
}

// targets are where calls over a trunk go, the best first.
func (s *Server) targets(t line) []string {
	if t.ID == inlineTrunk {
		return t.Targets
	}
	return s.trunks.Targets(t.ID)
}

// target is how to send to one of them.
func (s *Server) target(t line, uri string) dialog.Target {
	if t.ID != inlineTrunk {
		return s.trunks.Target(t.ID, uri)
	}
	return dialog.Target{
		URI: uri, Proxy: t.Outbound,
		Username: t.Auth.Username, Password: t.Auth.Password, Realm: t.Auth.Realm,
	}
}

// public is the address for a trunk's SDP, if it is not the gateway's.
func (s *Server) public(t call.Trunk) netip.Addr {
	if ip, err := netip.ParseAddr(t.ExternalIP); err == nil {
		return ip
	}
	return s.trunks.Public(t.ID)
}

// registrar reports whether an address is where a trunk's registrar answers from.
func (s *Server) registrar(t line, ip netip.Addr) bool {
	return t.Register.AOR != "" && slices.Contains(s.trunks.Sources(t.ID), ip)
}
