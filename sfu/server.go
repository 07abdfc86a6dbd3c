package sfu

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// A Server is the SFU: the media sockets and the rooms. New binds, Run serves
// and waits; all other methods may be called from anywhere, before and during
// Run.
type Server struct {
	cfg   Config
	log   *slog.Logger
	net   *network
	times times
	stop  chan struct{}  // closed when Run is told to end
	tasks sync.WaitGroup // room loops and members' goroutines

	mu      sync.Mutex // guards the following; never held while calling a room
	rooms   map[call.RoomName]*Room
	stopped bool
}

// times are the limits that tests make shorter, before the first room opens.
type times struct {
	disconnected time.Duration // silence after which ICE counts as disconnected
	failed       time.Duration // and then as failed
	join         time.Duration // from Join to the first connection
	rescue       time.Duration // from failed media to removal without a resume
	wish         time.Duration // for a wanted track to appear
}

func defaultTimes() times {
	return times{
		disconnected: 10 * time.Second, failed: 5 * time.Second,
		join: time.Minute, rescue: 5 * time.Second, wish: time.Minute,
	}
}

// New checks cfg and binds the media sockets. A server that is not wanted after
// all is ended by Run with a context that is over.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := deps.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n, err := listen(cfg, log)
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, log: log, net: n, times: defaultTimes(),
		stop:  make(chan struct{}),
		rooms: make(map[call.RoomName]*Room),
	}, nil
}

// Run serves until ctx ends, then closes every room and the sockets. It
// returns when every goroutine of the SFU has ended.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.stopped = true
	rooms := s.roomList()
	s.mu.Unlock()
	for _, r := range rooms {
		r.close(ReasonServerShutdown)
	}
	close(s.stop)
	s.tasks.Wait()
	return s.net.close()
}

// MediaAddrs returns the UDP addresses and ports that clients are told.
func (s *Server) MediaAddrs() []netip.AddrPort { return s.net.advertised() }

// TCPPort returns the ICE-TCP port, or 0 when ICE-TCP is off.
func (s *Server) TCPPort() int { return s.net.tcpPort }

// RoomOptions are given when a room is opened.
type RoomOptions struct {
	Metadata string
	// EmptyTimeout closes a room that nobody has joined; 0 means 300 s.
	EmptyTimeout time.Duration
	// LeaveTimeout closes a room after its last member has left; 0 means 20 s.
	LeaveTimeout time.Duration
	// MaxParticipants bounds the room; 0 takes the server's bound.
	MaxParticipants int
	// OnClosed is called once, on a goroutine of its own, after the room has
	// ended and is no longer found by Server.Room. It may be nil.
	OnClosed func(RoomInfo)
}

// OpenRoom returns the room of that name, opening it if there is none. The
// options of a room that is already open stay as they are. A room opened on a
// server that has stopped is closed.
func (s *Server) OpenRoom(name call.RoomName, o RoomOptions) *Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.rooms[name]; ok && !r.closed() {
		return r
	}
	r := newRoom(s, name, o)
	if s.stopped {
		close(r.done)
		return r
	}
	s.rooms[name] = r
	s.tasks.Go(r.run)
	return r
}

// Room returns an open room.
func (s *Server) Room(name call.RoomName) (*Room, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rooms[name]
	return r, ok && !r.closed()
}

// Rooms describes the open rooms, in no order.
func (s *Server) Rooms() []RoomInfo {
	s.mu.Lock()
	rooms := s.roomList()
	s.mu.Unlock()
	infos := make([]RoomInfo, 0, len(rooms))
	for _, r := range rooms {
		infos = append(infos, r.Info())
	}
	return infos
}

// DeleteRoom removes every member with the reason why and closes the room. A
// room that is not open is nothing to do.
func (s *Server) DeleteRoom(name call.RoomName, why Reason) {
	if r, ok := s.Room(name); ok {
		r.close(why)
	}
}

// Drain ends every session with EventLeave; with ReasonServerShutdown clients
// are told to connect again. Rooms stay open until they are empty.
func (s *Server) Drain(why Reason) {
	s.mu.Lock()
	rooms := s.roomList()
	s.mu.Unlock()
	for _, r := range rooms {
		_ = r.do(func() { r.removeAll(why) })
	}
}

// roomList needs s.mu.
func (s *Server) roomList() []*Room {
	rooms := make([]*Room, 0, len(s.rooms))
	for _, r := range s.rooms {
		rooms = append(rooms, r)
	}
	return rooms
}

// forget takes a closed room off the list, unless a new one has its name.
func (s *Server) forget(r *Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rooms[r.name] == r {
		delete(s.rooms, r.name)
	}
}

func errClosed(name call.RoomName) error {
	return fmt.Errorf("room %s has closed: %w", name, call.ErrUnavailable)
}
