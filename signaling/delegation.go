package signaling

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

const (
	// neverCame is how long a delegated participant may take to appear. The
	// leave is sent then; a client that is only slow sees its membership end
	// and joins again, while one that died leaves no ghost.
	neverCame = 2 * time.Minute

	// comeBack is added to the leave grace when the server starts: a client
	// retries every seven to eight seconds, and the first try after a restart
	// only tells it that its session cannot be resumed.
	comeBack = 5 * time.Second

	delegationTimeout = 10 * time.Second // for one restart or send
)

// An rtcKey is an identity in a media room.
type rtcKey struct {
	room call.RoomName
	id   call.Identity
}

// delegations keep the promise of MSC4195's delegated leave: while a
// participant is there its delayed leave event is restarted over and over, and
// when it is gone the event is sent. There is one job for each participant.
type delegations struct {
	rooms Rooms
	store Store
	grace time.Duration
	log   *slog.Logger

	wg sync.WaitGroup // the jobs' goroutines

	mu      sync.Mutex // guards the following fields; never held while calling rooms or store
	ctx     context.Context
	present map[rtcKey]bool
	jobs    map[rtcKey]*delegationJob
}

// A delegationJob follows one delegation until its event is sent, has ended in
// another way, or a newer delegation replaces it.
type delegationJob struct {
	d       call.Delegation
	until   time.Time     // the participant must have come by then
	changed chan struct{} // holds one: look at the presence again
	cancel  context.CancelFunc
	came    bool // guarded by delegations.mu: the participant has been there
}

func newDelegations(rooms Rooms, store Store, grace time.Duration, log *slog.Logger) *delegations {
	return &delegations{
		rooms: rooms, store: store, grace: grace, log: log,
		present: map[rtcKey]bool{}, jobs: map[rtcKey]*delegationJob{},
	}
}

// start takes up the delegations that were kept over a restart. A participant
// that does not come back within the grace has left, also one that was never
// seen. Jobs live until ctx is done; wait then waits for them.
func (s *delegations) start(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	kept, err := s.store.Delegations(ctx)
	if err != nil {
		return err
	}
	for _, d := range kept {
		s.follow(d, time.Now().Add(s.grace+comeBack))
	}
	if len(kept) > 0 {
		s.log.Info("took up delegated leaves from before the restart", "count", len(kept))
	}
	return nil
}

func (s *delegations) wait() { s.wg.Wait() }

// delegate keeps d and follows it, in place of an older one for the same
// participant. Calls must not overlap.
func (s *delegations) delegate(ctx context.Context, d call.Delegation) error {
	if err := s.store.SaveDelegation(ctx, d); err != nil {
		return err
	}
	s.follow(d, time.Now().Add(min(d.Delay, neverCame)))
	return nil
}

// presence tells that a participant is there or is gone.
func (s *delegations) presence(p rtcKey, here bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if here {
		s.present[p] = true
	} else {
		delete(s.present, p)
	}
	if j := s.jobs[p]; j != nil {
		j.came = j.came || here
		select {
		case j.changed <- struct{}{}:
		default:
		}
	}
}

func (s *delegations) follow(d call.Delegation, until time.Time) {
	p := rtcKey{d.Room, d.Identity}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.ctx.Err() != nil {
		return // it is in the store; the next start takes it up
	}
	if old := s.jobs[p]; old != nil {
		old.cancel()
	}
	ctx, cancel := context.WithCancel(s.ctx)
	j := &delegationJob{d: d, until: until, changed: make(chan struct{}, 1), cancel: cancel, came: s.present[p]}
	s.jobs[p] = j
	s.wg.Go(func() {
		defer cancel()
		s.run(ctx, p, j)
	})
}

// delegationState is where a job is in its life.
type delegationState int

const (
	delegationWaiting   delegationState = iota // for the participant to come
	delegationConnected                        // it is there; restart the event again and again
	delegationGone                             // send the event
	delegationDone                             // sent, or ended by somebody else
	delegationStopped                          // replaced, or the server stops
)

func (s *delegations) run(ctx context.Context, p rtcKey, j *delegationJob) {
	state := delegationWaiting
	for {
		switch state {
		case delegationWaiting:
			state = s.awaitParticipant(ctx, p, j)
		case delegationConnected:
			state = s.keepAlive(ctx, p, j)
		case delegationGone:
			state = s.sendLeave(ctx, p, j)
		case delegationDone:
			s.forget(ctx, p, j)
			return
		case delegationStopped:
			return
		}
	}
}

func (s *delegations) awaitParticipant(ctx context.Context, p rtcKey, j *delegationJob) delegationState {
	timeout := time.NewTimer(time.Until(j.until))
	defer timeout.Stop()
	for {
		s.mu.Lock()
		came := j.came
		s.mu.Unlock()
		if came {
			return delegationConnected
		}
		select {
		case <-ctx.Done():
			return delegationStopped
		case <-timeout.C:
			s.log.Info("delegated participant did not come", "room", p.room, "participant", p.id)
			return delegationGone
		case <-j.changed:
		}
	}
}

// keepAlive restarts the delayed event at once and then at 80 % of its delay
// after each success, for as long as the participant is there.
func (s *delegations) keepAlive(ctx context.Context, p rtcKey, j *delegationJob) delegationState {
	if !j.d.Seen {
		j.d.Seen = true
		if err := s.store.SawDelegated(ctx, p.room, p.id, j.d.DelayID); err != nil && ctx.Err() == nil {
			s.log.Warn("delegated leave", "room", p.room, "participant", p.id, "err", err)
		}
	}
	fires := time.Now().Add(j.d.Delay) // the latest moment at which the event goes off by itself
	retry := retryDelay{min: time.Second, max: time.Minute}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return delegationStopped
		case <-j.changed:
			if !s.isPresent(p) {
				return delegationGone
			}
			continue
		case <-next.C:
		}
		if !s.isPresent(p) {
			return delegationGone
		}
		err := s.attempt(ctx, j, s.rooms.RestartDelayedEvent)
		switch {
		case ctx.Err() != nil:
			return delegationStopped
		case err == nil:
			fires = time.Now().Add(j.d.Delay)
			retry.reset()
			next.Reset(max(j.d.Delay*8/10, time.Second))
		case errors.Is(err, call.ErrNotFound):
			// Sent or cancelled: the client has left by itself, or was too late.
			s.log.Debug("delegated leave ended by itself", "room", p.room, "participant", p.id)
			return delegationDone
		case time.Now().After(fires):
			s.log.Warn("delegated leave could not be restarted in time", "room", p.room, "participant", p.id, "err", err)
			return delegationDone
		default:
			s.log.Warn("restart delegated leave", "room", p.room, "participant", p.id, "err", err)
			next.Reset(retry.next())
		}
	}
}

// sendLeave sends the delayed event, until that works or cannot work any more.
// A participant that comes back first is kept.
func (s *delegations) sendLeave(ctx context.Context, p rtcKey, j *delegationJob) delegationState {
	retry := retryDelay{min: time.Second, max: time.Hour}
	for {
		if ctx.Err() != nil {
			return delegationStopped
		}
		if s.isPresent(p) {
			return delegationConnected
		}
		err := s.attempt(ctx, j, s.rooms.SendDelayedEvent)
		switch {
		case ctx.Err() != nil:
			return delegationStopped
		case err == nil:
			s.log.Info("sent the delegated leave", "room", p.room, "participant", p.id)
			return delegationDone
		case errors.Is(err, call.ErrNotFound), errors.Is(err, call.ErrForbidden), errors.Is(err, call.ErrInvalid):
			// Ended already, or a user who was kicked may not send it any more.
			s.log.Debug("delegated leave needs no sending", "room", p.room, "participant", p.id, "err", err)
			return delegationDone
		}
		wait := retry.next()
		s.log.Warn("send delegated leave", "room", p.room, "participant", p.id, "err", err, "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-j.changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (s *delegations) attempt(ctx context.Context, j *delegationJob, f func(context.Context, string) error) error {
	ctx, cancel := context.WithTimeout(ctx, delegationTimeout)
	defer cancel()
	return f(ctx, j.d.DelayID)
}

func (s *delegations) isPresent(p rtcKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.present[p]
}

func (s *delegations) forget(ctx context.Context, p rtcKey, j *delegationJob) {
	s.mu.Lock()
	if s.jobs[p] == j {
		delete(s.jobs, p)
	}
	s.mu.Unlock()
	if err := s.store.DeleteDelegation(ctx, p.room, p.id, j.d.DelayID); err != nil && ctx.Err() == nil {
		s.log.Warn("delegated leave", "room", p.room, "participant", p.id, "err", fmt.Errorf("forget: %w", err))
	}
}

// retryDelay counts waiting times from min to max, each half as long again.
type retryDelay struct{ min, max, last time.Duration }

func (b *retryDelay) next() time.Duration {
	b.last = min(max(b.min, b.last*3/2), b.max)
	return b.last
}

func (b *retryDelay) reset() { b.last = 0 }
