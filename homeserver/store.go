package homeserver

import (
	"context"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// A Store keeps everything that a homeserver must not forget. When a method
// that changes something returns nil, the change survives the death of the
// process. Unknown things are call.ErrNotFound. Safe for concurrent use.
type Store interface {
	RoomStore
	AccountStore
}

// An Append is one event to be added to a room, with what must be stored in the
// same transaction.
type Append = matrix.Append

// A RoomStore keeps rooms and their events.
//
// Everything that syncs takes its place in one stream of positions. Position
// returns the newest; everything at or before it can be read. A range
// (since, upTo] excludes since and includes upTo. Where a position "at" asks for
// the past, 0 is now.
type RoomStore interface {
	Position(ctx context.Context) (int64, error)
	// SigningKey returns the key that signs this server's events. The first call
	// ever stores the seed that it is given.
	SigningKey(ctx context.Context, keyID string, seed []byte) (id string, kept []byte, err error)

	// CreateRoom stores a new room with its first events, all or none.
	// ErrConflict: the room ID or the alias (if not empty) is taken.
	CreateRoom(ctx context.Context, room matrix.RoomInfo, alias matrix.RoomAlias, events []Append) (pos int64, err error)
	Room(ctx context.Context, room matrix.RoomID) (matrix.RoomInfo, error)
	// Append adds an event to a room. It returns the event's position. If the
	// room has moved past after, nothing is stored and the error is
	// call.ErrConflict: read the state again, authorise again, retry.
	Append(ctx context.Context, room matrix.RoomID, after int64, ev Append) (pos int64, err error)
	// Transaction returns the result of a request that was answered before.
	Transaction(ctx context.Context, t matrix.Transaction) (result string, err error)
	// DeleteTransactions forgets requests older than a time.
	DeleteTransactions(ctx context.Context, before time.Time) error

	// Event returns an event of a room.
	Event(ctx context.Context, room matrix.RoomID, id matrix.EventID) (matrix.StoredEvent, error)
	// Timeline returns at most limit events of a room with positions in
	// (since, upTo], the newest ones first if backwards, else the oldest first.
	Timeline(ctx context.Context, room matrix.RoomID, since, upTo int64, backwards bool, limit int) ([]matrix.StoredEvent, error)
	// State returns the state of a room after the event at a position.
	State(ctx context.Context, room matrix.RoomID, at int64) ([]matrix.StoredEvent, error)
	// StateOfType returns the state events of a type as they are now.
	StateOfType(ctx context.Context, room matrix.RoomID, typ string) ([]matrix.StoredEvent, error)
	// StateEvents returns those of the named pieces of state that exist.
	StateEvents(ctx context.Context, room matrix.RoomID, at int64, keys ...matrix.StateKeyTuple) ([]matrix.StoredEvent, error)
	// StateChanges returns the newest value of each piece of state that changed
	// in (since, upTo].
	StateChanges(ctx context.Context, room matrix.RoomID, since, upTo int64) ([]matrix.StoredEvent, error)
	// StateHistory returns all values that a piece of state ever had up to a
	// position, oldest first.
	StateHistory(ctx context.Context, room matrix.RoomID, key matrix.StateKeyTuple, upTo int64) ([]matrix.StoredEvent, error)

	// Members returns the memberships of a room as they are now.
	Members(ctx context.Context, room matrix.RoomID) ([]matrix.Member, error)
	// Memberships returns the memberships of a user as they are now.
	Memberships(ctx context.Context, user matrix.UserID) ([]matrix.Member, error)
	// Membership returns one membership. ErrNotFound: no such room. A user who
	// was never in the room has matrix.MembershipNone.
	Membership(ctx context.Context, room matrix.RoomID, user matrix.UserID) (matrix.Member, error)
	// RoomHeads returns the position of the newest event of each room in which
	// the user is joined.
	RoomHeads(ctx context.Context, user matrix.UserID) (map[matrix.RoomID]int64, error)
	// Forget hides a room that the user has left from them.
	Forget(ctx context.Context, room matrix.RoomID, user matrix.UserID) error
	// UsersSharingRooms returns the users joined to a room that the user has
	// joined.
	UsersSharingRooms(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error)
	// MembershipChanges returns the rooms and users of member events in
	// (since, upTo] in the given rooms.
	MembershipChanges(ctx context.Context, rooms []matrix.RoomID, since, upTo int64) ([]matrix.StoredEvent, error)

	// Relations returns the events that relate to an event, newest first if
	// backwards; relType and typ may be empty for all.
	Relations(ctx context.Context, room matrix.RoomID, parent matrix.EventID, relType, typ string, since, upTo int64, backwards bool, limit int) ([]matrix.StoredEvent, error)
	// RelationsOf returns the relations to any of the events (for aggregations).
	RelationsOf(ctx context.Context, room matrix.RoomID, parents []matrix.EventID) ([]matrix.Relation, error)
	// HasAnnotation reports whether a user has annotated an event with a key.
	HasAnnotation(ctx context.Context, parent matrix.EventID, sender matrix.UserID, typ, key string) (bool, error)

	// PutReceipt moves a receipt forward; one that would go back is ignored and
	// moved is false.
	PutReceipt(ctx context.Context, r matrix.Receipt) (moved bool, err error)
	// ReceiptChanges returns the receipts of the rooms that changed in
	// (since, upTo], or all if since is 0.
	ReceiptChanges(ctx context.Context, rooms []matrix.RoomID, since, upTo int64) ([]matrix.Receipt, error)
	// ReadUpTo returns the position up to which a user has read a room.
	ReadUpTo(ctx context.Context, room matrix.RoomID, user matrix.UserID) (int64, error)

	// StickyEvents returns the events of the rooms that are sticky at now, with
	// positions in (since, upTo], oldest first, at most limit.
	StickyEvents(ctx context.Context, rooms []matrix.RoomID, since, upTo int64, now time.Time, limit int) ([]matrix.StoredEvent, error)

	// PutAlias adds an alias. ErrConflict: it is taken.
	PutAlias(ctx context.Context, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error
	Alias(ctx context.Context, alias matrix.RoomAlias) (room matrix.RoomID, creator matrix.UserID, err error)
	DeleteAlias(ctx context.Context, alias matrix.RoomAlias) error
	Aliases(ctx context.Context, room matrix.RoomID) ([]matrix.RoomAlias, error)
	// Publish puts a room into the public room directory or takes it out.
	Publish(ctx context.Context, room matrix.RoomID, listed bool) error
	// PublishedRooms returns the rooms of the directory.
	PublishedRooms(ctx context.Context) ([]matrix.RoomID, error)

	// PutDelayed schedules a delayed event. If its transaction was seen before,
	// the delay ID of then is returned and nothing is stored. More than max
	// scheduled ones of the user are refused with call.ErrUnavailable.
	PutDelayed(ctx context.Context, d matrix.DelayedEvent, scope string, max int) (id string, err error)
	// Delayed returns a delayed event, finalised or not.
	Delayed(ctx context.Context, id string) (matrix.DelayedEvent, error)
	// DelayedOf returns the user's scheduled events.
	DelayedOf(ctx context.Context, user matrix.UserID) ([]matrix.DelayedEvent, error)
	// RestartDelayed starts the delay anew. ErrNotFound: no longer scheduled.
	RestartDelayed(ctx context.Context, id string, now time.Time) error
	// FinishDelayed notes an outcome other than sent. ErrNotFound: no longer
	// scheduled.
	FinishDelayed(ctx context.Context, id string, outcome matrix.DelayedOutcome, now time.Time) error
	// DueDelayed returns events due at now, the most overdue first, and when the
	// next one after them is due (zero: none).
	DueDelayed(ctx context.Context, now time.Time, limit int) (due []matrix.DelayedEvent, next time.Time, err error)
	// DeleteFinishedDelayed forgets outcomes older than a time.
	DeleteFinishedDelayed(ctx context.Context, before time.Time) error
}
