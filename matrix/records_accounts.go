package matrix

import (
	"encoding/json"
	"time"
)

// A TokenHash is the SHA-256 of an access, refresh or OpenID token. Tokens
// themselves are never stored.
type TokenHash [32]byte

// A User is one account of this server.
type User struct {
	ID           UserID
	PasswordHash string // PHC string; empty: no password login
	Guest        bool
	Admin        bool
	Deactivated  bool
	Created      time.Time
}

// A Session is a login to be stored: the device it makes or takes over, and its
// tokens.
type Session struct {
	User        UserID
	Device      DeviceID
	DisplayName string // given to a device that is new
	Access      TokenHash
	Expires     time.Time  // of the access token; zero: never
	Refresh     *TokenHash // nil: no refresh token
}

// A TokenOwner is who an access token belongs to.
type TokenOwner struct {
	User    UserID
	Device  DeviceID
	Guest   bool
	Expires time.Time // zero: never
	Fresh   bool      // it has a predecessor that its first use ends
}

// A Device is one device of a user.
type Device struct {
	ID          DeviceID
	DisplayName string
	LastSeenIP  string
	LastSeen    time.Time
}

// AccountData is one event of a user's account data.
type AccountData struct {
	Type    string
	Content json.RawMessage
}

// DeviceKeys are the identity keys of one device as it uploaded them.
type DeviceKeys struct {
	Device      DeviceID
	DisplayName string
	Keys        json.RawMessage // signed object, without unsigned
}

// An EncryptionKey is a one-time or fallback key: "algorithm:id" and its value.
type EncryptionKey struct {
	Algorithm string
	ID        string
	Value     json.RawMessage
}

// A KeyUpload is what POST /keys/upload brings for one device.
type KeyUpload struct {
	DeviceKeys json.RawMessage // nil: unchanged
	OneTime    []EncryptionKey
	Fallback   []EncryptionKey
}

// A KeyClaim asks for one one-time key of a device; a granted one has Key.
type KeyClaim struct {
	User      UserID
	Device    DeviceID
	Algorithm string
	Key       *EncryptionKey
}

// A KeySignature is one signature made by a user's key over a device's or a
// cross-signing key.
type KeySignature struct {
	User      UserID // whose key is signed
	Key       string // device ID, or the unpadded base64 public cross-signing key
	Signer    UserID
	SignerKey string // "ed25519:..."
	Signature string
}

// A ToDevice is one event for one device; Device "*" is all devices of the user.
type ToDevice struct {
	User   UserID
	Device DeviceID
	Event  json.RawMessage // {type, sender, content}
}

// A Pusher is a stored push target.
type Pusher struct {
	AppID   string
	PushKey string
	Device  DeviceID // that set it
	JSON    json.RawMessage
}

// A BackupVersion is one version of a user's server-side key backup.
type BackupVersion struct {
	Version   string
	Algorithm string
	AuthData  json.RawMessage
	ETag      string // changes with every change of the keys
	Count     int
}

// A BackupKey is one backed-up room key.
type BackupKey struct {
	Room              RoomID
	Session           string
	FirstMessageIndex int64
	ForwardedCount    int64
	IsVerified        bool
	SessionData       json.RawMessage
}

// Media is what is known of an uploaded file; its bytes are in the media folder
// under Hash.
type Media struct {
	ID          string
	Uploader    UserID
	Hash        string // hex SHA-256 of the content
	Size        int64
	ContentType string
	Name        string // empty: none given
	Created     time.Time
}
