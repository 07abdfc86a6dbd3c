package signaling

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
)

const (
	// hangupTimeout bounds the BYE or CANCEL of a call that nobody waits for
	// any more.
	hangupTimeout = 10 * time.Second
	// transferTimeout is how long a transfer may take if the caller does not say.
	transferTimeout = 30 * time.Second
	// longest are the bounds of what callers may ask for.
	longestRinging = 5 * time.Minute
	longestCall    = 24 * time.Hour
	maxDialDTMF    = 64 // digits
)

// createSIPParticipant calls a telephone into a room. It answers when the call is
// on its way or, if asked to wait, when it was answered; then a refusal is an
// error with the SIP status.
func (s *Server) createSIPParticipant(ctx context.Context, c *claims, r *livekit.CreateSIPParticipantRequest) (*livekit.SIPParticipantInfo, error) {
	if err := mayCallPhones(c); err != nil {
		return nil, err
	}
	r.Upgrade()
	if err := r.Validate(); err != nil {
		return nil, invalid("%s", err)
	}
	request, err := s.dialRequest(r)
	if err != nil {
		return nil, err
	}
	request.By = c.Issuer
	if request.RoomID, err = s.matrixRoom(ctx, request.Room); err != nil {
		return nil, fmt.Errorf("find the room of the call: %w", err)
	}
	leg, err := s.phones.Dial(ctx, request)
	if err != nil {
		return nil, dialError(leg, err)
	}
	if r.GetWaitUntilAnswered() {
		if leg, err = s.awaitAnswer(ctx, leg); err != nil {
			return nil, err
		}
	}
	info := &livekit.SIPParticipantInfo{
		ParticipantIdentity: string(leg.Identity),
		RoomName:            r.GetRoomName(),
		SipCallId:           string(leg.ID),
	}
	if info.ParticipantIdentity == "" {
		info.ParticipantIdentity = r.GetParticipantIdentity()
	}
	if room, ok := s.deps.SFU.Room(leg.Room); ok {
		if m, ok := room.Member(call.Identity(info.GetParticipantIdentity())); ok {
			info.ParticipantId = string(m.SID())
		}
	}
	return info, nil
}

// matrixRoom returns the Matrix room whose call a media room is, or nothing. There
// the phone has to be a member of the room, under the rules of the room, and not
// merely a voice: its identity is then not the caller's to choose.
func (s *Server) matrixRoom(ctx context.Context, name call.RoomName) (string, error) {
	room, ok := s.deps.SFU.Room(name)
	if s.rtc == nil || !ok {
		return "", nil
	}
	for _, p := range room.Participants() {
		m, err := s.deps.Store.Minted(ctx, name, p.Identity)
		if err == nil && m.RoomID != "" {
			return m.RoomID, nil
		}
		if err != nil && !errors.Is(err, call.ErrNotFound) {
			return "", err
		}
	}
	return "", nil
}

// dialRequest translates a request and refuses what cannot be had.
func (s *Server) dialRequest(r *livekit.CreateSIPParticipantRequest) (call.DialRequest, error) {
	media := r.GetMedia()
	if r.GetTrunk() != nil {
		media = nil // goes into the trunk
	}
	if err := refuseFields(
		field{"sip_request_uri", r.GetSipRequestUri() != nil, "the trunk says where to"},
		field{"sip_to_header", r.GetSipToHeader() != nil, ""},
		field{"sip_from_header", r.GetSipFromHeader() != nil, "the trunk says what numbers a call may show; choose one with sip_number"},
		field{"to_user_override", r.GetToUserOverride() != "", ""},
		field{"display_name", r.DisplayName != nil, "calls show the trunk's number"},
		field{"destination", r.GetDestination() != nil && proto.Size(r.GetDestination()) > 0, "calls leave from this server, there are no regions"},
		field{"sip_source_call_id", r.GetSipSourceCallId() != "", "calls are not forwarded with the caller's number"},
		field{"include_headers", r.GetIncludeHeaders() != livekit.SIPHeaderOptions_SIP_NO_HEADERS, noHeaderMapping},
		field{"krisp_enabled", r.GetKrispEnabled(), "there is no noise cancellation"},
		field{"media", media != nil && proto.Size(media) > 0, "set it at the trunk"},
		field{"dialtone", r.GetDialtone() > livekit.SIPDialtone_SIP_DIALTONE_AUTO, "the only tone is that of ETSI; ask for it or for AUTO"},
		field{"sip_trunk_id beside trunk", r.GetTrunk() != nil && r.GetSipTrunkId() != "", "give one of them"},
	); err != nil {
		return call.DialRequest{}, err
	}
	if err := onlyX(r.GetHeaders()); err != nil {
		return call.DialRequest{}, err
	}
	ringing, longest := r.GetRingingTimeout().AsDuration(), r.GetMaxCallDuration().AsDuration()
	switch {
	case len(r.GetRoomName()) > maxNameLen, len(r.GetParticipantIdentity()) > maxNameLen, len(r.GetParticipantName()) > maxNameLen,
		len(r.GetParticipantMetadata()) > maxMetadata, mergedSize(nil, r.GetParticipantAttributes()) > maxAttributes:
		return call.DialRequest{}, invalid("room name, identity, name, metadata or attributes exceed limits")
	case ringing < 0 || ringing > longestRinging:
		return call.DialRequest{}, invalid("ringing_timeout: %s is not between 0s and %s", ringing, longestRinging)
	case longest < 0 || longest > longestCall:
		return call.DialRequest{}, invalid("max_call_duration: %s is not between 0s and %s", longest, longestCall)
	case len(r.GetDtmf()) > maxDialDTMF || strings.Trim(r.GetDtmf(), "0123456789*#ABCDabcdwW") != "":
		return call.DialRequest{}, invalid("dtmf: up to %d of the digits 0-9, A-D, * and #, and w for a pause", maxDialDTMF)
	}
	out := call.DialRequest{
		Room:       call.RoomName(r.GetRoomName()),
		Number:     r.GetSipCallTo(),
		Trunk:      r.GetSipTrunkId(),
		From:       r.GetSipNumber(),
		Identity:   call.Identity(r.GetParticipantIdentity()),
		Name:       r.GetParticipantName(),
		Metadata:   r.GetParticipantMetadata(),
		Attrs:      maps.Clone(r.GetParticipantAttributes()),
		Headers:    maps.Clone(r.GetHeaders()),
		DTMF:       strings.ToLower(r.GetDtmf()),
		Dialtone:   r.GetDialtone() != livekit.SIPDialtone_SIP_DIALTONE_DISABLED,
		HideNumber: r.GetHidePhoneNumber(),
		Ringing:    ringing,
		Longest:    longest,
	}
	if out.Trunk != "" {
		if _, err := s.trunkFor(out.Trunk, outbound); err != nil {
			return call.DialRequest{}, err
		}
	}
	if r.GetTrunk() != nil {
		via, err := inlineTrunk(r)
		if err != nil {
			return call.DialRequest{}, err
		}
		out.Via = via
	}
	return out, nil
}

// inlineTrunk makes the trunk that a request brings for its one call.
func inlineTrunk(r *livekit.CreateSIPParticipantRequest) (*call.Trunk, error) {
	c := r.GetTrunk()
	if r.GetSipNumber() == "" {
		return nil, invalid("sip_number: needed with trunk, as the number that the call shows")
	}
	via := &call.Trunk{ID: newSIPID(sipTrunkPrefix), Direction: outbound}
	return via, readOutbound(via, &livekit.SIPOutboundTrunkInfo{
		Address:             c.GetHostname(),
		DestinationCountry:  c.GetDestinationCountry(),
		Transport:           c.GetTransport(),
		Numbers:             []string{r.GetSipNumber()},
		AuthUsername:        c.GetAuthUsername(),
		AuthPassword:        c.GetAuthPassword(),
		HeadersToAttributes: c.GetHeadersToAttributes(),
		AttributesToHeaders: c.GetAttributesToHeaders(),
		FromHost:            c.GetFromHost(),
		Media:               r.GetMedia(),
	})
}

// awaitAnswer returns the leg once it is answered. A caller that goes away takes
// its call along: nobody else knows of it.
func (s *Server) awaitAnswer(ctx context.Context, leg call.Leg) (call.Leg, error) {
	for {
		switch leg.State {
		case call.LegAnswered, call.LegConfirmed:
			return leg, nil
		case call.LegEnded:
			return leg, legError(leg)
		}
		next, err := s.phones.Wait(ctx, leg.ID, leg.State)
		if err != nil && ctx.Err() == nil {
			return leg, fmt.Errorf("wait for the answer: %w", err)
		}
		if ctx.Err() != nil {
			ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), hangupTimeout)
			defer cancel()
			if err := s.phones.Hangup(ended, leg.ID); err != nil && !errors.Is(err, call.ErrNotFound) {
				s.log.Warn("hanging up a call that nobody waits for", "leg", leg.ID, "err", err)
			}
			return leg, &twirpError{code: twirpCanceled, text: "the caller went away"}
		}
		leg = next
	}
}

// dialError is why nothing, or nothing more, was sent. The gateway says it in
// words for people, in its leg or in its error.
func dialError(leg call.Leg, err error) error {
	var caused interface{ Cause() call.Cause }
	if leg.Cause == call.CauseNone && errors.As(err, &caused) {
		leg.Cause = caused.Cause()
	}
	text := leg.Text
	if text == "" {
		text = err.Error()
	}
	switch {
	case leg.Code >= 300, leg.Cause == call.CauseNoLine:
		leg.Text = text
		return legError(leg)
	case errors.Is(err, call.ErrForbidden):
		return &twirpError{code: twirpPermissionDenied, text: text}
	case errors.Is(err, call.ErrInvalid):
		return invalid("%s", text)
	case errors.Is(err, call.ErrNotFound):
		return &twirpError{code: twirpNotFound, text: text}
	case errors.Is(err, call.ErrConflict):
		return &twirpError{code: twirpFailedPrecondition, text: text}
	case errors.Is(err, call.ErrUnavailable):
		// SDKs take LiveKit's "unavailable" for a server that is overloaded and
		// try the next one: this is about a line or a limit.
		return &twirpError{code: twirpResourceExhausted, text: text, status: sipHTTPStatus[twirpResourceExhausted]}
	}
	return fmt.Errorf("dial: %w", err)
}

// causeStatus is the status that stands for a cause when no response came.
var causeStatus = map[call.Cause]livekit.SIPStatusCode{
	call.CauseBusy:        livekit.SIPStatusCode_SIP_STATUS_BUSY_HERE,
	call.CauseNoAnswer:    livekit.SIPStatusCode_SIP_STATUS_REQUEST_TIMEOUT,
	call.CauseRejected:    livekit.SIPStatusCode_SIP_STATUS_GLOBAL_DECLINE,
	call.CauseWrongNumber: livekit.SIPStatusCode_SIP_STATUS_NOTFOUND,
	call.CauseNoLine:      livekit.SIPStatusCode_SIP_STATUS_SERVICE_UNAVAILABLE,
	call.CauseMedia:       livekit.SIPStatusCode_SIP_STATUS_NOT_ACCEPTABLE_HERE,
	call.CauseCancelled:   livekit.SIPStatusCode_SIP_STATUS_REQUEST_TERMINATED,
	call.CauseHangup:      livekit.SIPStatusCode_SIP_STATUS_REQUEST_TERMINATED,
	call.CauseRemoved:     livekit.SIPStatusCode_SIP_STATUS_REQUEST_TERMINATED,
	call.CauseRoomEnded:   livekit.SIPStatusCode_SIP_STATUS_REQUEST_TERMINATED,
	call.CauseShutdown:    livekit.SIPStatusCode_SIP_STATUS_REQUEST_TERMINATED,
}

// legError is why a leg ended before it was answered.
func legError(leg call.Leg) error {
	if leg.Cause == call.CauseNotAllowed || leg.Cause == call.CauseLimit {
		text := leg.Text
		if text == "" {
			text = "not allowed"
		}
		return &twirpError{code: twirpPermissionDenied, text: text}
	}
	code := livekit.SIPStatusCode(leg.Code)
	if leg.Code < 300 || leg.Code > 699 {
		var ok bool
		if code, ok = causeStatus[leg.Cause]; !ok {
			code = livekit.SIPStatusCode_SIP_STATUS_INTERNAL_SERVER_ERROR
		}
	}
	return sipError(&livekit.SIPStatus{Code: code, Status: statusPhrase(code)}, leg.Text)
}

// statusPhrase returns "Busy Here" for 486.
func statusPhrase(code livekit.SIPStatusCode) string {
	if _, known := livekit.SIPStatusCode_name[int32(code)]; !known {
		return fmt.Sprintf("Status %d", code)
	}
	words := strings.Split(strings.ToLower(code.ShortName()), "_")
	for i, word := range words {
		words[i] = strings.ToUpper(word[:1]) + word[1:]
	}
	return strings.Join(words, " ")
}

// sipError is the error that SDKs read a SIP status from: livekit.SIPStatusFrom
// of the Go SDK from the encoded details, those for Node and Python from the
// metadata. more is for people and may be empty.
func sipError(status *livekit.SIPStatus, more string) error {
	st := status.GRPCStatus()
	meta := status.TwirpErrorMeta()
	if details, err := proto.Marshal(st.Proto()); err == nil {
		meta["error_details"] = base64.StdEncoding.EncodeToString(details)
	}
	e := grpcToTwirp(st.Code().String())
	text := st.Message()
	if more != "" {
		text += " (" + more + ")"
	}
	return &twirpError{code: e, text: text, meta: meta, status: sipHTTPStatus[e]}
}

// sipHTTPStatus is the HTTP status of a code where a SIP call is concerned and
// the server API at large uses another.
var sipHTTPStatus = map[twirpCode]int{twirpResourceExhausted: http.StatusTooManyRequests}

// grpcToTwirp translates the name of a gRPC code, of those that SIP statuses have.
func grpcToTwirp(name string) twirpCode {
	switch name {
	case "InvalidArgument":
		return twirpInvalidArgument
	case "DeadlineExceeded":
		return twirpDeadlineExceeded
	case "NotFound":
		return twirpNotFound
	case "PermissionDenied":
		return twirpPermissionDenied
	case "ResourceExhausted":
		return twirpResourceExhausted
	case "FailedPrecondition":
		return twirpFailedPrecondition
	case "Aborted":
		return twirpAborted
	case "OutOfRange":
		return twirpOutOfRange
	case "Unauthenticated":
		return twirpUnauthenticated
	}
	return twirpUnknown
}

// transferSIPParticipant hands a phone's other side over to somebody else.
func (s *Server) transferSIPParticipant(ctx context.Context, c *claims, r *livekit.TransferSIPParticipantRequest) (*livekit.TransferSIPParticipantResponse, error) {
	if err := mayCallPhones(c); err != nil {
		return nil, err
	}
	if err := mayAdminister(c, r.GetRoomName()); err != nil {
		return nil, err
	}
	r.Upgrade()
	if err := r.Validate(); err != nil {
		return nil, invalid("%s", err)
	}
	if err := refuseFields(
		field{"dialtone", r.GetDialtone() != livekit.SIPDialtone_SIP_DIALTONE_DISABLED, "the transferred phone hears what its own exchange plays"},
	); err != nil {
		return nil, err
	}
	if err := onlyX(r.GetHeaders()); err != nil {
		return nil, err
	}
	timeout := transferTimeout
	if r.GetRingingTimeout() != nil {
		timeout = r.GetRingingTimeout().AsDuration()
	}
	if timeout <= 0 || timeout > longestRinging {
		return nil, invalid("ringing_timeout: %s is not between 0s and %s", timeout, longestRinging)
	}
	m, err := s.memberNamed(c, r.GetRoomName(), r.GetParticipantIdentity())
	if err != nil {
		return nil, err
	}
	leg, ok := s.phones.LegOf(call.RoomName(r.GetRoomName()), m.Info().Identity)
	if !ok {
		return nil, invalid("no SIP session associated with participant")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	to := strings.TrimSuffix(strings.TrimPrefix(r.GetTransferTo(), "<"), ">")
	if err := s.phones.Transfer(ctx, leg.ID, to, maps.Clone(r.GetHeaders())); err != nil {
		return nil, transferError(err)
	}
	return &livekit.TransferSIPParticipantResponse{
		Status: livekit.SIPTransferStatus_STS_TRANSFER_SUCCESSFUL,
		Reason: livekit.SIPTransferReason_STR_COMPLETED,
	}, nil
}

// transferError is why a transfer failed, with the reason that SDKs read.
func transferError(err error) error {
	details := &livekit.SIPTransferError{}
	var code twirpCode
	text := twirpText(err)
	var refused *call.StatusError
	switch {
	case errors.As(err, &refused):
		status := livekit.SIPStatusCode(refused.Code)
		phrase := refused.Reason
		if phrase == "" {
			phrase = statusPhrase(status)
		}
		details.Reason = livekit.SIPTransferReason_STR_REJECTED
		details.SipStatus = &livekit.SIPStatus{Code: status, Status: phrase}
		code = grpcToTwirp(details.GRPCStatus().Code().String())
	case errors.Is(err, context.DeadlineExceeded):
		details.Reason, code = livekit.SIPTransferReason_STR_RINGING_TIMEOUT, twirpDeadlineExceeded
		text = "no answer in time"
	case errors.Is(err, context.Canceled):
		details.Reason, code = livekit.SIPTransferReason_STR_CANCELED, twirpCanceled
		text = "the caller went away"
	case errors.Is(err, call.ErrNotFound):
		details.Reason, code = livekit.SIPTransferReason_STR_CALL_ENDED, twirpNotFound
		text = "the call has ended"
	case errors.Is(err, call.ErrForbidden):
		return &twirpError{code: twirpPermissionDenied, text: "the transfer is not allowed: " + err.Error()}
	case errors.Is(err, call.ErrInvalid), errors.Is(err, call.ErrConflict):
		return gatewayError(err)
	default:
		return fmt.Errorf("transfer: %w", err)
	}
	st := details.GRPCStatus()
	meta := details.TwirpErrorMeta()
	if status := details.GetSipStatus(); status != nil {
		text = st.Message()
		// Older SDKs do not look for the status inside the other detail.
		if both, err := st.WithDetails(status); err == nil {
			st = both
		}
	}
	if encoded, err := proto.Marshal(st.Proto()); err == nil {
		meta["error_details"] = base64.StdEncoding.EncodeToString(encoded)
	}
	return &twirpError{code: code, text: text, meta: meta, status: sipHTTPStatus[code]}
}
