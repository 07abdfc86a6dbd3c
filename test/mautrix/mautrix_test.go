//go:build goolm

package mautrix

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/cryptohelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite"

	"github.com/trunkhall/trunkhall/test/harness"
)

// A client is an account with a syncing, encrypting mautrix client.
type client struct {
	*mautrix.Client
	joined chan id.RoomID    // rooms that it was invited to and joined
	texts  chan *event.Event // messages of others, decrypted
}

func newClient(ctx context.Context, t *testing.T, homeserver, name string) *client {
	t.Helper()
	cli, err := mautrix.NewClient(homeserver, "", "")
	if err != nil {
		t.Fatal(err)
	}
	account, err := cli.RegisterDummy(ctx, &mautrix.ReqRegister[any]{Username: name, Password: name + " secret password"})
	if err != nil {
		t.Fatalf("registering %s: %v", name, err)
	}
	cli.UserID, cli.DeviceID, cli.AccessToken = account.UserID, account.DeviceID, account.AccessToken

	raw, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "crypto.db")+"?_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)")
	if err != nil {
		t.Fatal(err)
	}
	raw.SetMaxOpenConns(1)
	db, err := dbutil.NewWithDB(raw, "sqlite")
	if err != nil {
		t.Fatal(err)
	}
	helper, err := cryptohelper.NewCryptoHelper(cli, []byte("pickle key of the test"), db)
	if err != nil {
		t.Fatal(err)
	}
	if err := helper.Init(ctx); err != nil {
		t.Fatalf("%s sets up encryption: %v", name, err)
	}
	cli.Crypto = helper
	c := &client{Client: cli, joined: make(chan id.RoomID, 1), texts: make(chan *event.Event, 10)}
	helper.DecryptErrorCallback = func(ev *event.Event, err error) { t.Errorf("%s cannot decrypt %s: %v", name, ev.ID, err) }
	syncer := cli.Syncer.(*mautrix.DefaultSyncer)
	syncer.OnEventType(event.StateMember, func(ctx context.Context, ev *event.Event) {
		if ev.GetStateKey() == cli.UserID.String() && ev.Content.AsMember().Membership == event.MembershipInvite {
			if _, err := cli.JoinRoomByID(ctx, ev.RoomID); err != nil {
				t.Errorf("%s joins: %v", name, err)
				return
			}
			c.joined <- ev.RoomID
		}
	})
	syncer.OnEventType(event.EventMessage, func(_ context.Context, ev *event.Event) {
		if ev.Sender != cli.UserID {
			c.texts <- ev
		}
	})
	syncCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := cli.SyncWithContext(syncCtx); err != nil && syncCtx.Err() == nil {
			t.Errorf("the sync of %s ended: %v", name, err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		if err := raw.Close(); err != nil {
			t.Errorf("closing the store of %s: %v", name, err)
		}
	})
	return c
}

// expect waits for the next message to be this one, and to have come encrypted.
func (c *client) expect(ctx context.Context, t *testing.T, text string, from id.UserID) {
	t.Helper()
	select {
	case ev := <-c.texts:
		if got := ev.Content.AsMessage().Body; got != text || ev.Sender != from {
			t.Fatalf("%s read %q of %s, want %q of %s", c.UserID, got, ev.Sender, text, from)
		}
		if ev.Mautrix.EventSource&event.SourceDecrypted == 0 {
			t.Fatalf("%q was not encrypted", text)
		}
	case <-ctx.Done():
		t.Fatalf("%s never read %q", c.UserID, text)
	}
}

func TestTwoClientsInAnEncryptedRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s := harness.Start(t)
	alice := newClient(ctx, t, s.Homeserver, "alice-go")
	bob := newClient(ctx, t, s.Homeserver, "bob-go")

	room, err := alice.CreateRoom(ctx, &mautrix.ReqCreateRoom{
		Preset: "trusted_private_chat",
		Invite: []id.UserID{bob.UserID},
		InitialState: []*event.Event{{
			Type:    event.StateEncryption,
			Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}},
		}},
	})
	if err != nil {
		t.Fatalf("creating the room: %v", err)
	}
	select {
	case got := <-bob.joined:
		if got != room.RoomID {
			t.Fatalf("bob joined %s, not %s", got, room.RoomID)
		}
	case <-ctx.Done():
		t.Fatal("bob was never invited")
	}
	// Both must have seen the join and that the room is encrypted before they
	// encrypt for each other.
	for _, c := range []*client{alice, bob} {
		for {
			encrypted, err := c.StateStore.IsEncrypted(ctx, room.RoomID)
			if err != nil {
				t.Fatal(err)
			}
			members, err := c.StateStore.GetRoomJoinedOrInvitedMembers(ctx, room.RoomID)
			if err != nil {
				t.Fatal(err)
			}
			joined := 0
			for _, m := range members {
				if c.StateStore.IsInRoom(ctx, room.RoomID, m) {
					joined++
				}
			}
			if encrypted && joined == 2 {
				break
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("%s: encrypted %v, %d of 2 joined", c.UserID, encrypted, joined)
			}
		}
	}
	if _, err := alice.SendText(ctx, room.RoomID, "hello bob"); err != nil {
		t.Fatalf("alice sends: %v", err)
	}
	bob.expect(ctx, t, "hello bob", alice.UserID)
	if _, err := bob.SendText(ctx, room.RoomID, "hello alice"); err != nil {
		t.Fatalf("bob sends: %v", err)
	}
	alice.expect(ctx, t, "hello alice", bob.UserID)

	// A stranger reads nothing of it.
	carol := newClient(ctx, t, s.Homeserver, "carol-go")
	if _, err := carol.Messages(ctx, room.RoomID, "", "", mautrix.DirectionBackward, nil, 10); err == nil || !strings.Contains(err.Error(), "M_FORBIDDEN") {
		t.Errorf("a stranger asks for the room's messages: got %v, want M_FORBIDDEN", err)
	}
}
