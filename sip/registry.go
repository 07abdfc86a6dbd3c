package sip

import (
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

// trunkState describes a trunk as it does now.
func (s *Server) trunkState(t line) call.TrunkState {
	state := call.TrunkState{Trunk: t.Trunk, Source: t.source, Up: true}
	state.Trunk.Auth.Password = ""
	state.Calls = s.limits.Calls(t.ID)
	return state
}

// targets are where calls over a trunk go, the best first.
func (s *Server) targets(t line) []string { return t.Targets }

// targetFailed tells that a target did not take a call.
func (s *Server) targetFailed(t line, target string, e dialog.Ended) {}
