// Package matrix is the vocabulary of the Matrix protocol that Trunkhall's
// parts share, and the seam over gomatrixserverlib's room rules: identifiers,
// events, error codes, canonical JSON, authorisation. It does no I/O.
package matrix

import "strings"

// Identifiers. Distinct types, so that a room cannot be passed as a user.
type (
	// A RoomID is "!opaque:server" up to room version 11 and "!hash" from 12 on:
	// never take a server name out of it.
	RoomID string
	// A UserID is "@localpart:server".
	UserID string
	// An EventID is "$hash".
	EventID string
	// A DeviceID is opaque and belongs to a user.
	DeviceID string
	// A RoomAlias is "#name:server".
	RoomAlias string
	// A ServerName is a DNS name or IP literal with an optional port.
	ServerName string
)

// Localpart returns the part between the sigil and the first colon.
func (u UserID) Localpart() string {
	s := strings.TrimPrefix(string(u), "@")
	l, _, _ := strings.Cut(s, ":")
	return l
}

// Server returns the part behind the first colon, empty if there is none.
func (u UserID) Server() ServerName {
	_, srv, _ := strings.Cut(string(u), ":")
	return ServerName(srv)
}

// A Membership is the membership key of an m.room.member event.
type Membership string

// The memberships of the Matrix specification. MembershipNone is a user with no
// member event at all.
const (
	MembershipNone   Membership = ""
	MembershipJoin   Membership = "join"
	MembershipInvite Membership = "invite"
	MembershipLeave  Membership = "leave"
	MembershipBan    Membership = "ban"
	MembershipKnock  Membership = "knock"
)

// A MembershipChange tells that a user's membership of a room is now another.
type MembershipChange struct {
	Room   RoomID
	User   UserID
	Sender UserID // who did it; a kick is a leave whose sender is someone else
	From   Membership
	To     Membership
}
