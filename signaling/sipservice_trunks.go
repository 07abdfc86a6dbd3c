package signaling

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/trunkhall/trunkhall/call"
)

// LiveKit has trunks for calls that come in and others for calls that go out;
// here one trunk may do both, and then it is in both lists. An update changes of
// a trunk only what LiveKit has words for. Passwords are taken, never told: an
// empty one beside the same user name means the one that is known.

const (
	inbound  = "inbound"
	outbound = "outbound"
)

func (s *Server) createSIPInboundTrunk(ctx context.Context, r *livekit.CreateSIPInboundTrunkRequest) (*livekit.SIPInboundTrunkInfo, error) {
	r.GetTrunk().Upgrade()
	if err := r.ValidateAddresses(); err != nil {
		return nil, invalid("%s", err)
	}
	t := call.Trunk{ID: newSIPID(sipTrunkPrefix), Direction: inbound}
	if err := readInbound(&t, r.GetTrunk()); err != nil {
		return nil, err
	}
	if err := s.saveTrunk(ctx, t); err != nil {
		return nil, err
	}
	return inboundInfo(t), nil
}

func (s *Server) createSIPOutboundTrunk(ctx context.Context, r *livekit.CreateSIPOutboundTrunkRequest) (*livekit.SIPOutboundTrunkInfo, error) {
	r.GetTrunk().Upgrade()
	if err := r.Validate(); err != nil {
		return nil, invalid("%s", err)
	}
	t := call.Trunk{ID: newSIPID(sipTrunkPrefix), Direction: outbound}
	if err := readOutbound(&t, r.GetTrunk()); err != nil {
		return nil, err
	}
	if err := s.saveTrunk(ctx, t); err != nil {
		return nil, err
	}
	return outboundInfo(t), nil
}

func (s *Server) updateSIPInboundTrunk(ctx context.Context, r *livekit.UpdateSIPInboundTrunkRequest) (*livekit.SIPInboundTrunkInfo, error) {
	r.GetReplace().Upgrade()
	if err := r.ValidateAddresses(); err != nil {
		return nil, invalid("%s", err)
	}
	t, err := s.trunkFor(r.GetSipTrunkId(), inbound)
	if err != nil {
		return nil, err
	}
	info := inboundInfo(t)
	if info.AuthUsername != "" {
		// So that an update which leaves the password alone does not look like
		// one that leaves the trunk open.
		info.AuthPassword = keptPassword
	}
	action, ok := r.GetAction().(livekit.UpdateSIPInboundTrunkRequestAction)
	if !ok {
		return nil, invalid("missing or unsupported update action")
	}
	if info, err = action.ApplyAddresses(info); err != nil {
		return nil, invalid("%s", err)
	}
	if err := readInbound(&t, info); err != nil {
		return nil, err
	}
	if err := s.saveTrunk(ctx, t); err != nil {
		return nil, err
	}
	return inboundInfo(t), nil
}

func (s *Server) updateSIPOutboundTrunk(ctx context.Context, r *livekit.UpdateSIPOutboundTrunkRequest) (*livekit.SIPOutboundTrunkInfo, error) {
	r.GetReplace().Upgrade()
	if err := r.Validate(); err != nil {
		return nil, invalid("%s", err)
	}
	t, err := s.trunkFor(r.GetSipTrunkId(), outbound)
	if err != nil {
		return nil, err
	}
	action, ok := r.GetAction().(livekit.UpdateSIPOutboundTrunkRequestAction)
	if !ok {
		return nil, invalid("missing or unsupported update action")
	}
	info, err := action.Apply(outboundInfo(t))
	if err != nil {
		return nil, invalid("%s", err)
	}
	if err := readOutbound(&t, info); err != nil {
		return nil, err
	}
	if err := s.saveTrunk(ctx, t); err != nil {
		return nil, err
	}
	return outboundInfo(t), nil
}

func (s *Server) getSIPInboundTrunk(_ context.Context, r *livekit.GetSIPInboundTrunkRequest) (*livekit.GetSIPInboundTrunkResponse, error) {
	t, err := s.trunkFor(r.GetSipTrunkId(), inbound)
	if err != nil {
		return nil, err
	}
	return &livekit.GetSIPInboundTrunkResponse{Trunk: inboundInfo(t)}, nil
}

func (s *Server) getSIPOutboundTrunk(_ context.Context, r *livekit.GetSIPOutboundTrunkRequest) (*livekit.GetSIPOutboundTrunkResponse, error) {
	t, err := s.trunkFor(r.GetSipTrunkId(), outbound)
	if err != nil {
		return nil, err
	}
	return &livekit.GetSIPOutboundTrunkResponse{Trunk: outboundInfo(t)}, nil
}

func (s *Server) listSIPInboundTrunk(_ context.Context, r *livekit.ListSIPInboundTrunkRequest) (*livekit.ListSIPInboundTrunkResponse, error) {
	var all []*livekit.SIPInboundTrunkInfo
	for _, t := range s.trunks(inbound) {
		all = append(all, inboundInfo(t))
	}
	return &livekit.ListSIPInboundTrunkResponse{Items: paged(r.GetPage(), r.FilterSlice(all))}, nil
}

func (s *Server) listSIPOutboundTrunk(_ context.Context, r *livekit.ListSIPOutboundTrunkRequest) (*livekit.ListSIPOutboundTrunkResponse, error) {
	var all []*livekit.SIPOutboundTrunkInfo
	for _, t := range s.trunks(outbound) {
		all = append(all, outboundInfo(t))
	}
	return &livekit.ListSIPOutboundTrunkResponse{Items: paged(r.GetPage(), r.FilterSlice(all))}, nil
}

// listSIPTrunk is the list of old clients, which know one kind of trunk.
//
//nolint:staticcheck // deprecated, and still in the SDKs
func (s *Server) listSIPTrunk(_ context.Context, r *livekit.ListSIPTrunkRequest) (*livekit.ListSIPTrunkResponse, error) {
	var all []*livekit.SIPTrunkInfo
	for _, t := range s.trunks("") {
		all = append(all, trunkInfo(t))
	}
	return &livekit.ListSIPTrunkResponse{Items: paged(r.GetPage(), all)}, nil
}

//nolint:staticcheck // the answer's type is deprecated, the method is not
func (s *Server) deleteSIPTrunk(ctx context.Context, r *livekit.DeleteSIPTrunkRequest) (*livekit.SIPTrunkInfo, error) {
	t, err := s.trunkFor(r.GetSipTrunkId(), "")
	if err != nil {
		return nil, err
	}
	if err := s.phones.DeleteTrunk(ctx, t.ID); err != nil {
		return nil, gatewayError(err)
	}
	return trunkInfo(t), nil
}

// trunks returns the trunks of a direction, or all, in the order of their ids.
func (s *Server) trunks(direction string) []call.Trunk {
	var out []call.Trunk
	for _, state := range s.phones.Trunks() {
		if t := state.Trunk; direction == "" || t.Direction == direction || t.Direction == "both" || t.Direction == "" {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b call.Trunk) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (s *Server) trunkFor(id, direction string) (call.Trunk, error) {
	if id == "" {
		return call.Trunk{}, invalid("trunk ID is required")
	}
	for _, t := range s.trunks(direction) {
		if t.ID == id {
			return t, nil
		}
	}
	return call.Trunk{}, &twirpError{code: twirpNotFound, text: "requested sip trunk does not exist"}
}

func (s *Server) saveTrunk(ctx context.Context, t call.Trunk) error {
	if err := s.phones.SetTrunk(ctx, t); err != nil {
		return gatewayError(err)
	}
	return nil
}

// paged returns the part of a list that a page asks for. A list asked for by ids
// has nil where there is nothing of that id.
func paged[T livekit.PageItem](page *livekit.Pagination, all []T) []T {
	out := all[:0:0]
	for _, item := range all {
		if page.GetLimit() > 0 && len(out) == int(page.GetLimit()) {
			break
		}
		if page.Filter(item) {
			out = append(out, item)
		}
	}
	return out
}

// keptPassword stands for a password that is known but not told.
const keptPassword = "\x00kept"

func passwordOf(text string) string {
	if text == keptPassword {
		return ""
	}
	return text
}

// readInbound overwrites in t what info says.
func readInbound(t *call.Trunk, info *livekit.SIPInboundTrunkInfo) error {
	if err := refuseFields(
		field{"headers", len(info.GetHeaders()) > 0, "no headers can be added to answers"},
		field{"headers_to_attributes", len(info.GetHeadersToAttributes()) > 0, noHeaderMapping},
		field{"attributes_to_headers", len(info.GetAttributesToHeaders()) > 0, noHeaderMapping},
		field{"include_headers", info.GetIncludeHeaders() != livekit.SIPHeaderOptions_SIP_NO_HEADERS, noHeaderMapping},
		field{"ringing_timeout", info.GetRingingTimeout().AsDuration() != 0, "callers do not wait for subscribers here"},
		field{"ringing_timeout_status", info.GetRingingTimeoutStatus() != livekit.SIPStatusCode_SIP_STATUS_UNKNOWN, "callers do not wait for subscribers here"},
		field{"krisp_enabled", info.GetKrispEnabled(), "there is no noise cancellation"},
	); err != nil {
		return err
	}
	if (info.GetAuthUsername() == "") != (info.GetAuthPassword() == "") {
		return invalid("auth_username and auth_password: give both or neither")
	}
	if info.GetAuthUsername() == "" && len(info.GetAllowedAddresses()) == 0 && t.Register.AOR == "" {
		return invalid("for security, auth_username and auth_password or allowed_addresses must be set: numbers alone can be forged")
	}
	t.Name, t.Metadata = info.GetName(), info.GetMetadata()
	t.In.Numbers = slices.Clone(info.GetNumbers())
	t.In.From = slices.Clone(info.GetAllowedNumbers())
	t.In.CIDRs = nil
	for _, text := range info.GetAllowedAddresses() {
		p, err := livekit.ParseSIPAllowedAddress(text)
		if err != nil {
			return invalid("%s", err)
		}
		t.In.CIDRs = append(t.In.CIDRs, p.Masked().String())
	}
	t.In.Digest = info.GetAuthUsername() != ""
	if info.GetAuthPassword() == keptPassword && info.GetAuthUsername() != t.Auth.Username {
		return invalid("auth_password: a new auth_username needs its own")
	}
	if t.In.Digest || t.Direction == inbound { // else they are for calling out
		t.Auth = call.TrunkAuth{Username: info.GetAuthUsername(), Password: passwordOf(info.GetAuthPassword()), Realm: info.GetAuthRealm()}
	}
	t.MaxDuration = info.GetMaxCallDuration().AsDuration()
	return readMedia(t, info.GetMedia())
}

//nolint:staticcheck // old clients read media_encryption
func inboundInfo(t call.Trunk) *livekit.SIPInboundTrunkInfo {
	info := &livekit.SIPInboundTrunkInfo{
		SipTrunkId:     t.ID,
		Name:           t.Name,
		Metadata:       t.Metadata,
		Numbers:        t.In.Numbers,
		AllowedNumbers: t.In.From,
		AuthRealm:      t.Auth.Realm,
		Media:          writeMedia(t),
	}
	if t.In.Digest {
		info.AuthUsername = t.Auth.Username
	}
	for _, text := range t.In.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && p.IsSingleIP() {
			text = p.Addr().String()
		}
		info.AllowedAddresses = append(info.AllowedAddresses, text)
	}
	if t.MaxDuration > 0 {
		info.MaxCallDuration = durationpb.New(t.MaxDuration)
	}
	info.MediaEncryption = info.Media.GetEncryption()
	return info
}

// readOutbound overwrites in t what info says. Where the trunk may call to is not
// LiveKit's to say: sip.outbound of the configuration does, or the trunk's own
// lists, which an operator can set.
func readOutbound(t *call.Trunk, info *livekit.SIPOutboundTrunkInfo) error {
	if err := refuseFields(
		field{"destination_country", info.GetDestinationCountry() != "", "calls leave from this server, there are no regions"},
		field{"headers_to_attributes", len(info.GetHeadersToAttributes()) > 0, noHeaderMapping},
		field{"attributes_to_headers", len(info.GetAttributesToHeaders()) > 0, noHeaderMapping},
		field{"include_headers", info.GetIncludeHeaders() != livekit.SIPHeaderOptions_SIP_NO_HEADERS, noHeaderMapping},
		field{"from_host", info.GetFromHost() != "", "the From header has this server's address"},
		field{`numbers "*"`, slices.Contains(info.GetNumbers(), "*"), "name the numbers that calls may show"},
	); err != nil {
		return err
	}
	if err := onlyX(info.GetHeaders()); err != nil {
		return err
	}
	if info.GetAuthUsername() == "" && info.GetAuthPassword() != "" {
		return invalid("auth_password: needs auth_username")
	}
	for i, number := range info.GetNumbers() {
		if !validNumber(number) {
			return invalid("numbers: entry %d is no number", i+1)
		}
	}
	target, err := sipTarget(info.GetAddress(), info.GetTransport())
	if err != nil {
		return err
	}
	t.Name, t.Metadata = info.GetName(), info.GetMetadata()
	if len(t.Targets) == 0 || t.Targets[0] != target {
		t.Targets = []string{target} // one that stays keeps its spares
	}
	t.Auth.Username, t.Auth.Password = info.GetAuthUsername(), passwordOf(info.GetAuthPassword())
	t.Headers = maps.Clone(info.GetHeaders())
	if t.CallerID.Mode == "" {
		t.CallerID.Mode = "fixed"
	}
	t.CallerID.Default, t.CallerID.Numbers = info.GetNumbers()[0], slices.Clone(info.GetNumbers()[1:])
	return readMedia(t, info.GetMedia())
}

//nolint:staticcheck // old clients read media_encryption
func outboundInfo(t call.Trunk) *livekit.SIPOutboundTrunkInfo {
	info := &livekit.SIPOutboundTrunkInfo{
		SipTrunkId:   t.ID,
		Name:         t.Name,
		Metadata:     t.Metadata,
		AuthUsername: t.Auth.Username,
		Headers:      t.Headers,
		Media:        writeMedia(t),
	}
	if len(t.Targets) > 0 {
		info.Address, info.Transport = parseTarget(t.Targets[0])
	}
	if t.CallerID.Default != "" {
		info.Numbers = append(info.Numbers, t.CallerID.Default)
	}
	info.Numbers = append(info.Numbers, t.CallerID.Numbers...)
	info.MediaEncryption = info.Media.GetEncryption()
	return info
}

// trunkInfo is a trunk as old clients know it.
//
//nolint:staticcheck // see listSIPTrunk
func trunkInfo(t call.Trunk) *livekit.SIPTrunkInfo {
	in, out := inboundInfo(t), outboundInfo(t)
	info := &livekit.SIPTrunkInfo{
		SipTrunkId:       t.ID,
		Name:             t.Name,
		Metadata:         t.Metadata,
		InboundAddresses: in.AllowedAddresses,
		InboundNumbers:   in.AllowedNumbers, // theirs, as in LiveKit's own translation
		InboundUsername:  in.AuthUsername,
		OutboundAddress:  out.Address,
		Transport:        out.Transport,
	}
	switch t.Direction {
	case inbound:
		info.Kind = livekit.SIPTrunkInfo_TRUNK_INBOUND
	case outbound:
		info.Kind = livekit.SIPTrunkInfo_TRUNK_OUTBOUND
	}
	if t.Direction != inbound {
		info.OutboundUsername = t.Auth.Username
	}
	switch {
	case t.Direction != outbound && len(t.In.Numbers) > 0:
		info.OutboundNumber = t.In.Numbers[0]
	case len(out.Numbers) > 0:
		info.OutboundNumber = out.Numbers[0]
	}
	return info
}

// onlyX refuses headers whose meaning is the gateway's business: SIP gives some
// that routers and billing believe.
func onlyX(headers map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		if len(name) < 3 || !strings.EqualFold(name[:2], "X-") {
			return invalid("headers: %s: only headers whose names begin with X- can be set", name)
		}
	}
	return nil
}

var sipTransports = map[livekit.SIPTransport]string{
	livekit.SIPTransport_SIP_TRANSPORT_AUTO: "",
	livekit.SIPTransport_SIP_TRANSPORT_UDP:  "udp",
	livekit.SIPTransport_SIP_TRANSPORT_TCP:  "tcp",
	livekit.SIPTransport_SIP_TRANSPORT_TLS:  "tls",
}

// sipTarget makes a SIP URI of a host, perhaps with a port, and a transport.
func sipTarget(address string, transport livekit.SIPTransport) (string, error) {
	name, ok := sipTransports[transport]
	if !ok {
		return "", invalid("transport: unknown value %d", transport)
	}
	host := address
	if h, port, err := net.SplitHostPort(address); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", invalid("address: %q has no valid port", address)
		}
		host = h
	}
	if !validHost(strings.Trim(host, "[]")) {
		return "", invalid("address: %q is neither a host name nor an address", address)
	}
	if ip, err := netip.ParseAddr(address); err == nil && ip.Is6() {
		address = "[" + address + "]"
	}
	uri := "sip:" + address
	if name != "" {
		uri += ";transport=" + name
	}
	return uri, nil
}

// validNumber reports whether text can be the number that a call shows: digits as
// people write them, or the name of an extension.
func validNumber(text string) bool {
	return text != "" && len(text) <= 64 &&
		strings.Trim(strings.ToLower(text), "+0123456789 ()-./*#abcdefghijklmnopqrstuvwxyz_") == ""
}

// validHost reports whether text can be a host without meaning more in a URI.
func validHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return !strings.Contains(text, "%")
	}
	if text == "" || len(text) > 253 {
		return false
	}
	return strings.Trim(strings.ToLower(text), "abcdefghijklmnopqrstuvwxyz0123456789-._") == "" && !strings.Contains(text, "..")
}

// parseTarget is the reverse of sipTarget. What LiveKit has no word for, such as
// WebSockets, is left out.
func parseTarget(uri string) (address string, transport livekit.SIPTransport) {
	rest, params, _ := strings.Cut(uri, ";")
	scheme, address, ok := strings.Cut(rest, ":")
	if !ok {
		return uri, livekit.SIPTransport_SIP_TRANSPORT_AUTO
	}
	if _, host, ok := strings.Cut(address, "@"); ok {
		address = host
	}
	if scheme == "sips" {
		transport = livekit.SIPTransport_SIP_TRANSPORT_TLS
	}
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		for t, text := range sipTransports {
			if text != "" && strings.EqualFold(name, "transport") && strings.EqualFold(value, text) {
				transport = t
			}
		}
	}
	return address, transport
}
