package homeserver

import (
	"context"
	"encoding/json"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// An AccountStore keeps accounts, devices, keys and what belongs to users.
// Every method that changes something does so in one transaction that is
// durable when it returns. What syncs is given the next position of the one
// stream that rooms share (RoomStore.Position). Unknown things are
// call.ErrNotFound. Safe for concurrent use.
type AccountStore interface {
	// CreateUser adds an account with its first push rules (account data
	// m.push_rules). ErrConflict: the ID is taken, or was by a deactivated user.
	CreateUser(ctx context.Context, u matrix.User, pushRules json.RawMessage) error
	User(ctx context.Context, id matrix.UserID) (matrix.User, error)
	// Users lists all accounts but guests, in order of their IDs.
	Users(ctx context.Context) ([]matrix.User, error)
	SetPasswordHash(ctx context.Context, id matrix.UserID, hash string) error
	// Deactivate ends an account for ever: no password, no devices, no tokens,
	// no pushers, no keys; with erase no profile either. The ID stays taken.
	Deactivate(ctx context.Context, id matrix.UserID, erase bool) error

	// CreateSession stores a login. Tokens that the device had before are gone
	// after it; its keys stay.
	CreateSession(ctx context.Context, s matrix.Session) error
	// TokenOwner returns whose access token it is, expired or not.
	TokenOwner(ctx context.Context, token matrix.TokenHash) (matrix.TokenOwner, error)
	// TokenUsed ends the predecessors of a fresh token: the older access tokens
	// of its device and the refresh token that it came from.
	TokenUsed(ctx context.Context, token matrix.TokenHash) error
	// RefreshSession trades a refresh token for new tokens. The old one works
	// again until TokenUsed is called for the new access token or the new
	// refresh token is traded; trading it again replaces what it gave before.
	RefreshSession(ctx context.Context, refresh, newAccess matrix.TokenHash, expires time.Time, newRefresh matrix.TokenHash) error

	Devices(ctx context.Context, user matrix.UserID) ([]matrix.Device, error)
	Device(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (matrix.Device, error)
	// RenameDevice sets the display name (a device-list change).
	RenameDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string) error
	TouchDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, ip string, at time.Time) error
	// DeleteDevices removes devices with their tokens, keys, to-device events
	// and pushers, and notes a device-list change. Unknown devices are no error.
	DeleteDevices(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) error

	// Profile returns the two fields that rooms show, empty where unset.
	Profile(ctx context.Context, user matrix.UserID) (displayname, avatarURL string, err error)
	// ProfileFields returns all fields of a profile. ErrNotFound: no such user.
	ProfileFields(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error)
	// SetProfileField sets a field, or removes it if value is nil.
	SetProfileField(ctx context.Context, user matrix.UserID, key string, value json.RawMessage) error

	// PutFilter stores a filter and returns its ID, the same one for the same
	// filter. The oldest filters of a user who has very many are forgotten.
	PutFilter(ctx context.Context, user matrix.UserID, filter json.RawMessage) (id string, err error)
	Filter(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error)

	// PutAccountData sets one event of account data; room "" is global.
	PutAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, d matrix.AccountData) error
	// UpdateAccountData sets one event of account data to what change makes of it;
	// old is nil if there was none. change must be quick and not call the store.
	UpdateAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, change func(old json.RawMessage) (json.RawMessage, error)) error
	AccountDataEvent(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error)
	// GlobalAccountData returns what changed in (since, upTo]; since 0: all there is.
	GlobalAccountData(ctx context.Context, user matrix.UserID, since, upTo int64) ([]matrix.AccountData, error)
	// RoomAccountData is GlobalAccountData for the user's rooms.
	RoomAccountData(ctx context.Context, user matrix.UserID, since, upTo int64) (map[matrix.RoomID][]matrix.AccountData, error)

	// SendToDevice queues events. If (sender, device, txn) was seen before it
	// does nothing and sent is false. Unknown devices get nothing. The oldest
	// events of a device for which very many wait are dropped.
	SendToDevice(ctx context.Context, sender matrix.UserID, device matrix.DeviceID, txn string, events []matrix.ToDevice) (sent bool, err error)
	// ToDevice returns the device's oldest events up to a position and the
	// position of the last of them (upTo if that is all).
	ToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo int64, limit int) (events []json.RawMessage, last int64, err error)
	// AckToDevice deletes the device's events up to a position.
	AckToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo int64) error

	// UploadKeys stores keys of a device. ErrInvalid: a one-time key of that ID
	// has another value. changed: others must fetch the device keys again.
	UploadKeys(ctx context.Context, user matrix.UserID, device matrix.DeviceID, k matrix.KeyUpload) (changed bool, err error)
	OneTimeKeyCounts(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (map[string]int, error)
	UnusedFallbackKeyTypes(ctx context.Context, user matrix.UserID, device matrix.DeviceID) ([]string, error)
	// DeviceKeys returns the keys of the named devices that have any, or of all.
	DeviceKeys(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) ([]matrix.DeviceKeys, error)
	// CrossSigningKeys returns keys by usage: master, self_signing, user_signing.
	CrossSigningKeys(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error)
	PutCrossSigningKeys(ctx context.Context, user matrix.UserID, keys map[string]json.RawMessage) error
	// KeySignatures returns the signatures over a user's keys made by the user
	// or by signer.
	KeySignatures(ctx context.Context, user, signer matrix.UserID) ([]matrix.KeySignature, error)
	PutKeySignatures(ctx context.Context, sigs []matrix.KeySignature) error
	// ClaimKeys takes one key for each claim, oldest first, else the fallback
	// key (marked as used); Key stays nil where there is none.
	ClaimKeys(ctx context.Context, claims []matrix.KeyClaim) ([]matrix.KeyClaim, error)
	// DeviceListChanges returns the users whose device list or cross-signing
	// keys changed in (since, upTo].
	DeviceListChanges(ctx context.Context, since, upTo int64) ([]matrix.UserID, error)

	// The key backup. An empty version is the current one.
	CreateBackup(ctx context.Context, user matrix.UserID, algorithm string, authData json.RawMessage) (version string, err error)
	Backup(ctx context.Context, user matrix.UserID, version string) (matrix.BackupVersion, error)
	SetBackupAuth(ctx context.Context, user matrix.UserID, version string, authData json.RawMessage) error
	DeleteBackup(ctx context.Context, user matrix.UserID, version string) error
	// PutBackupKeys stores keys where they are better than what is there.
	// ErrConflict: version is not the current one.
	PutBackupKeys(ctx context.Context, user matrix.UserID, version string, keys []matrix.BackupKey) (matrix.BackupVersion, error)
	// BackupKeys returns the keys of a version; room and session "" are all.
	BackupKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) ([]matrix.BackupKey, error)
	DeleteBackupKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) (matrix.BackupVersion, error)

	Pushers(ctx context.Context, user matrix.UserID) ([]matrix.Pusher, error)
	// SetPusher stores a pusher. exclusive removes it from other users.
	SetPusher(ctx context.Context, user matrix.UserID, p matrix.Pusher, exclusive bool) error
	DeletePusher(ctx context.Context, user matrix.UserID, appID, pushKey string) error
	// DeletePushersExcept drops the pushers that other devices set.
	DeletePushersExcept(ctx context.Context, user matrix.UserID, keep matrix.DeviceID) error

	PutMedia(ctx context.Context, m matrix.Media) error
	Media(ctx context.Context, id string) (matrix.Media, error)

	// PutOpenIDToken stores an OpenID token. The oldest ones of a user who has very
	// many end early.
	PutOpenIDToken(ctx context.Context, token matrix.TokenHash, user matrix.UserID, expires time.Time) error
	// OpenIDUser returns whose OpenID token it is. ErrNotFound also when expired at now.
	OpenIDUser(ctx context.Context, token matrix.TokenHash, now time.Time) (matrix.UserID, error)
	// Expire deletes tokens that ended and transaction IDs that nobody repeats.
	Expire(ctx context.Context, now time.Time) error
}
