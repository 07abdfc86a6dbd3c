package signaling

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// delegationStore keeps delegations in memory; SQLite has goroutines of its
// own, which do not fit into virtual time.
type delegationStore struct {
	Store
	mu   sync.Mutex
	kept map[rtcKey]call.Delegation
}

func newDelegationStore() *delegationStore {
	return &delegationStore{kept: map[rtcKey]call.Delegation{}}
}

func (s *delegationStore) SaveDelegation(_ context.Context, d call.Delegation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[rtcKey{d.Room, d.Identity}] = d
	return nil
}

func (s *delegationStore) SawDelegated(_ context.Context, room call.RoomName, id call.Identity, delayID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.kept[rtcKey{room, id}]; ok && d.DelayID == delayID {
		d.Seen = true
		s.kept[rtcKey{room, id}] = d
	}
	return nil
}

func (s *delegationStore) DeleteDelegation(_ context.Context, room call.RoomName, id call.Identity, delayID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.kept[rtcKey{room, id}]; ok && d.DelayID == delayID {
		delete(s.kept, rtcKey{room, id})
	}
	return nil
}

func (s *delegationStore) Delegations(context.Context) ([]call.Delegation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []call.Delegation
	for _, d := range s.kept {
		all = append(all, d)
	}
	return all, nil
}

func (s *delegationStore) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept)
}

// leaveTest is the delegation machine in virtual time.
type leaveTest struct {
	t     *testing.T
	rooms *fakeRooms
	store *delegationStore
	*delegations
	cancel context.CancelFunc
}

var alicesSeat = rtcKey{"room", "@alice:example.org:PHONE"}

// start begins, or begins again after stop with what was kept.
func (lt *leaveTest) start() {
	ctx, cancel := context.WithCancel(context.Background())
	lt.cancel = cancel
	lt.delegations = newDelegations(lt.rooms, lt.store, 15*time.Second, slog.New(slog.DiscardHandler))
	if err := lt.delegations.start(ctx); err != nil {
		lt.t.Fatal(err)
	}
}

func (lt *leaveTest) stop() {
	lt.cancel()
	lt.wait()
}

func (lt *leaveTest) delegateOne(id string, delay time.Duration) {
	lt.t.Helper()
	lt.rooms.schedule(id, testRoom, "@alice:example.org", delay)
	err := lt.delegate(context.Background(), call.Delegation{
		Room: alicesSeat.room, Identity: alicesSeat.id, RoomID: string(testRoom), UserID: "@alice:example.org",
		DelayID: id, Delay: delay, Created: time.Now(),
	})
	if err != nil {
		lt.t.Fatal(err)
	}
}

func (lt *leaveTest) sent() []string {
	lt.rooms.mu.Lock()
	defer lt.rooms.mu.Unlock()
	return slices.Clone(lt.rooms.sent)
}

func (lt *leaveTest) restarts(id string) int {
	lt.rooms.mu.Lock()
	defer lt.rooms.mu.Unlock()
	return lt.rooms.restarted[id]
}

func (lt *leaveTest) setFailure(err error) {
	lt.rooms.mu.Lock()
	defer lt.rooms.mu.Unlock()
	lt.rooms.fail = err
}

// pass lets virtual time go by.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func testLeave(t *testing.T, f func(t *testing.T, lt *leaveTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		lt := &leaveTest{t: t, rooms: newFakeRooms(), store: newDelegationStore()}
		lt.start()
		f(t, lt)
		lt.stop()
	})
}

func TestDelegatedLeaveIsKeptAliveAndSent(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.delegateOne("leave", time.Hour)
		pass(5 * time.Second)
		if n := lt.restarts("leave"); n != 0 {
			t.Errorf("restarted %d times before the participant came", n)
		}
		lt.presence(alicesSeat, true)
		synctest.Wait()
		if n := lt.restarts("leave"); n != 1 {
			t.Errorf("restarted %d times when the participant came, want once at once", n)
		}
		if d := lt.store.kept[alicesSeat]; !d.Seen {
			t.Error("it is not kept that the participant has been here")
		}
		pass(47 * time.Minute)
		if n := lt.restarts("leave"); n != 1 {
			t.Errorf("restarted %d times before 80 %% of the delay", n)
		}
		pass(2 * time.Minute)
		if n := lt.restarts("leave"); n != 2 {
			t.Errorf("restarted %d times after 80 %% of the delay, want 2", n)
		}
		pass(24 * time.Hour)
		if n := lt.restarts("leave"); n != 32 { // at 0 and every 48 minutes of 24 h 49 min
			t.Errorf("restarted %d times in a day, want 32", n)
		}
		if got := lt.sent(); len(got) != 0 {
			t.Errorf("sent %v while the participant is there", got)
		}
		lt.presence(alicesSeat, false)
		synctest.Wait()
		if got := lt.sent(); !slices.Equal(got, []string{"leave"}) {
			t.Errorf("sent %v when the participant was gone; the others see a ghost", got)
		}
		if lt.store.size() != 0 {
			t.Error("the finished delegation is still kept")
		}
	})
}

func TestDelegationAfterTheParticipantCame(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("leave", time.Hour)
		synctest.Wait()
		if n := lt.restarts("leave"); n != 1 {
			t.Errorf("restarted %d times, want once", n)
		}
		lt.presence(alicesSeat, false)
		synctest.Wait()
		if got := lt.sent(); len(got) != 1 {
			t.Errorf("sent %v", got)
		}
	})
}

func TestParticipantThatNeverComesIsLeft(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.delegateOne("short", 30*time.Second)
		pass(29 * time.Second)
		if got := lt.sent(); len(got) != 0 {
			t.Errorf("sent %v too early", got)
		}
		pass(2 * time.Second)
		if got := lt.sent(); !slices.Equal(got, []string{"short"}) {
			t.Errorf("sent %v after the delay", got)
		}
		lt.delegateOne("long", time.Hour)
		pass(neverCame + time.Second)
		if got := lt.sent(); !slices.Equal(got, []string{"short", "long"}) {
			t.Errorf("sent %v; who never came is a ghost", got)
		}
	})
}

func TestQuickVisit(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.delegateOne("leave", time.Hour)
		lt.presence(alicesSeat, true)
		lt.presence(alicesSeat, false)
		synctest.Wait()
		if got := lt.sent(); len(got) != 1 {
			t.Errorf("sent %v after a visit shorter than the machine's step", got)
		}
	})
}

func TestRestartThatIsNotFoundEndsTheJob(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("leave", time.Minute)
		synctest.Wait()
		lt.rooms.mu.Lock()
		delete(lt.rooms.delayed, "leave") // the client has sent it
		lt.rooms.mu.Unlock()
		pass(time.Minute)
		if lt.store.size() != 0 || len(lt.jobs) != 0 {
			t.Error("the job outlived its event")
		}
		lt.presence(alicesSeat, false)
		synctest.Wait()
		if got := lt.sent(); len(got) != 0 {
			t.Errorf("sent %v", got)
		}
	})
}

func TestFailingRestartsAreTriedUntilTheEventFires(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.setFailure(fmt.Errorf("database is away: %w", call.ErrUnavailable))
		lt.delegateOne("leave", 10*time.Minute)
		pass(time.Minute)
		lt.setFailure(nil)
		pass(time.Minute)
		if n := lt.restarts("leave"); n == 0 {
			t.Error("not tried again after failures")
		}
		lt.setFailure(errors.New("away for good"))
		pass(20 * time.Minute)
		if lt.store.size() != 0 {
			t.Error("tried on after the event must have fired")
		}
	})
}

func TestFailingSendIsTriedAgain(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("leave", time.Hour)
		synctest.Wait()
		lt.setFailure(errors.New("disk full"))
		lt.presence(alicesSeat, false)
		pass(10 * time.Second)
		if lt.store.size() != 1 {
			t.Fatal("the leave was given up")
		}
		lt.setFailure(nil)
		pass(30 * time.Second)
		if got := lt.sent(); len(got) != 1 {
			t.Errorf("sent %v", got)
		}
	})
}

func TestWhoComesBackBeforeTheLeaveIsSentStays(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("leave", time.Hour)
		synctest.Wait()
		lt.setFailure(errors.New("disk full"))
		lt.presence(alicesSeat, false)
		pass(time.Second)
		lt.setFailure(nil)
		lt.presence(alicesSeat, true)
		pass(time.Hour)
		if got := lt.sent(); len(got) != 0 {
			t.Errorf("sent %v for a participant that came back", got)
		}
		if lt.restarts("leave") < 2 {
			t.Error("the event is not kept alive after the participant came back")
		}
	})
}

func TestLeaveOfAKickedUserIsNotTriedForEver(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("leave", time.Hour)
		synctest.Wait()
		lt.setFailure(fmt.Errorf("not joined: %w", call.ErrForbidden))
		lt.presence(alicesSeat, false)
		synctest.Wait()
		if lt.store.size() != 0 {
			t.Error("a leave that may not be sent is still kept")
		}
	})
}

func TestNewerDelegationReplaces(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("one", time.Hour)
		synctest.Wait()
		lt.delegateOne("two", time.Hour)
		synctest.Wait()
		before := lt.restarts("one")
		pass(3 * time.Hour)
		if lt.restarts("one") != before {
			t.Error("the replaced event is still restarted")
		}
		lt.presence(alicesSeat, false)
		synctest.Wait()
		if got := lt.sent(); !slices.Equal(got, []string{"two"}) {
			t.Errorf("sent %v, want the newer one alone", got)
		}
	})
}

func TestDelegationAfterServerRestart(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.presence(alicesSeat, true)
		lt.delegateOne("leave", time.Hour)
		synctest.Wait()
		lt.stop()
		if got := lt.sent(); len(got) != 0 {
			t.Fatalf("stopping the server sent %v", got)
		}

		// It comes back, a little late.
		lt.start()
		pass(18 * time.Second)
		lt.presence(alicesSeat, true)
		pass(time.Minute)
		if got := lt.sent(); len(got) != 0 {
			t.Fatalf("sent %v for a participant that came back after 18 s", got)
		}
		lt.presence(alicesSeat, true) // resumed
		lt.stop()
		lt.presence(alicesSeat, false) // its session ends with the server
		if got := lt.sent(); len(got) != 0 {
			t.Fatalf("stopping the server sent %v", got)
		}

		// It does not come back.
		lt.start()
		pass(29 * time.Second)
		if got := lt.sent(); !slices.Equal(got, []string{"leave"}) {
			t.Errorf("sent %v 29 s after the restart; a ghost stays", got)
		}
	})
}

func TestUnseenDelegationAfterServerRestart(t *testing.T) {
	testLeave(t, func(t *testing.T, lt *leaveTest) {
		lt.delegateOne("leave", time.Hour)
		synctest.Wait()
		lt.stop()
		lt.start()
		pass(29 * time.Second)
		if got := lt.sent(); len(got) != 1 {
			t.Errorf("sent %v 29 s after the restart", got)
		}
	})
}

// Over HTTP and SQLite, with the fields as clients send them.
func TestDelegationRequests(t *testing.T) {
	rt := newRTCTest(t)
	withDelay := func(body, fields string) string {
		return strings.Replace(body, `"openid_token"`, fields+`,"openid_token"`, 1)
	}
	const fields = `"delay_id":"mine","delay_timeout":3600000,"delay_cs_api_url":"http://127.0.0.1:1/","unknown":{"x":[]}`

	rt.rooms.schedule("mine", testRoom, "@alice:example.org", time.Hour)
	g := rt.grant("/sfu/get", withDelay(aliceLegacy, fields))
	rt.here(g.Room, g.Identity)
	waitFor(t, "the leave to be restarted", func() bool {
		rt.rooms.mu.Lock()
		defer rt.rooms.mu.Unlock()
		return rt.rooms.restarted["mine"] == 1
	})
	rt.gone(g.Room, g.Identity, false)
	waitFor(t, "the leave to be sent", func() bool {
		rt.rooms.mu.Lock()
		defer rt.rooms.mu.Unlock()
		return slices.Equal(rt.rooms.sent, []string{"mine"})
	})

	rt.rooms.schedule("mine", testRoom, "@alice:example.org", time.Hour)
	resp, out := rt.do("POST", "/x/delegate_delayed_leave", withDelay(aliceMember(), fields))
	if resp.StatusCode != 200 || len(out) != 0 {
		t.Fatalf("delegate_delayed_leave answered %d %v, want 200 {}", resp.StatusCode, out)
	}
	kept, err := rt.store.Delegations(context.Background())
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if want := memberIdentity("@alice:example.org", "PHONE", "11111111-2222-3333-4444-555555555555"); kept[0].Identity != want || kept[0].Delay != time.Hour {
		t.Errorf("kept %+v", kept[0])
	}
}

// waitFor waits in real time for something that takes a few milliseconds.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
