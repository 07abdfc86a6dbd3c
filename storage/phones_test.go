package storage

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

func TestRoomPINs(t *testing.T) {
	ctx, db := context.Background(), openSignaling(t)
	if err := db.SetRoomPIN(ctx, "!a:x", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := db.SetRoomPIN(ctx, "!b:x", []byte("one")); !errors.Is(err, call.ErrConflict) {
		t.Errorf("the PIN of another room: %v; a caller would come into either room", err)
	}
	if err := db.SetRoomPIN(ctx, "!a:x", []byte("one")); err != nil {
		t.Errorf("the same PIN again: %v", err)
	}
	if err := db.SetRoomPIN(ctx, "!a:x", []byte("two")); err != nil {
		t.Fatal(err)
	}
	if _, err := db.RoomOfPIN(ctx, []byte("one")); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("the old PIN after a new one was set: %v; whoever had it still comes in", err)
	}
	if room, err := db.RoomOfPIN(ctx, []byte("two")); err != nil || room != "!a:x" {
		t.Errorf("RoomOfPIN = %q, %v", room, err)
	}
	if hash, err := db.RoomPIN(ctx, "!a:x"); err != nil || string(hash) != "two" {
		t.Errorf("RoomPIN = %q, %v", hash, err)
	}
	if err := db.DeleteRoomPIN(ctx, "!a:x"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.RoomPIN(ctx, "!a:x"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("RoomPIN after DeleteRoomPIN: %v", err)
	}
}

func TestOpenPhoneSeats(t *testing.T) {
	ctx, db := context.Background(), openSignaling(t)
	a := call.OpenSeat{RoomID: "!a:x", UserID: "@_phone_1:x", DeviceID: "ONE"}
	b := call.OpenSeat{RoomID: "!a:x", UserID: "@_phone_1:x", DeviceID: "TWO", Stays: true}
	for _, s := range []call.OpenSeat{a, b} {
		if err := db.OpenPhoneSeat(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.ClosePhoneSeat(ctx, a); err != nil {
		t.Fatal(err)
	}
	if got, err := db.OpenPhoneSeats(ctx); err != nil || !reflect.DeepEqual(got, []call.OpenSeat{b}) {
		t.Errorf("OpenPhoneSeats = %+v, %v; want the one that was not given back", got, err)
	}
}

func TestSIPTrunksAndRules(t *testing.T) {
	ctx, db := context.Background(), openSignaling(t)
	trunk := call.Trunk{ID: "p", Direction: "both", Auth: call.TrunkAuth{Username: "u", Password: "secret"}, OptionsPing: 30 * time.Second}
	for _, name := range []string{"old", "new"} {
		trunk.Name = name
		if err := db.PutSIPTrunk(ctx, trunk); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := db.SIPTrunks(ctx); err != nil || !reflect.DeepEqual(got, []call.Trunk{trunk}) {
		t.Errorf("SIPTrunks = %+v, %v; want %+v", got, err, trunk)
	}
	if err := errors.Join(db.DeleteSIPTrunk(ctx, "p"), db.DeleteSIPTrunk(ctx, "p")); err != nil {
		t.Error(err)
	}
	if got, err := db.SIPTrunks(ctx); err != nil || len(got) != 0 {
		t.Errorf("SIPTrunks after the last one was deleted: %+v, %v", got, err)
	}
	z, a := call.DispatchRule{ID: "z", Action: call.DispatchAction{Type: "pin"}}, call.DispatchRule{ID: "a", Action: call.DispatchAction{Type: "room", Room: "#r:x"}}
	for _, r := range []call.DispatchRule{z, a, z} {
		if err := db.PutSIPRule(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := db.SIPRules(ctx); err != nil || !reflect.DeepEqual(got, []call.DispatchRule{z, a}) {
		t.Errorf("SIPRules = %+v, %v; want them in the order in which they came", got, err)
	}
	if err := db.DeleteSIPRule(ctx, "z"); err != nil {
		t.Fatal(err)
	}
	if got, err := db.SIPRules(ctx); err != nil || len(got) != 1 {
		t.Errorf("SIPRules after a rule was deleted: %+v, %v", got, err)
	}
}
