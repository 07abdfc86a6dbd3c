package sfu

// before reports whether sequence number a was sent before b, allowing for the
// wrap. Numbers more than half the circle apart are a guess.
func before(a, b uint16) bool { return int16(a-b) < 0 }

const (
	// memory is how far back a late packet may still find its place.
	memory = 0x2000
	// lostCause is how many packets in a row may have no place: then it is the
	// source that jumped.
	lostCause = 20
)

// historySize is how many changes of the offset are remembered for packets
// that come late.
const historySize = 32

// A renumberer gives the packets that are forwarded consecutive sequence
// numbers over switches of the source, pauses and packets left out. It also
// carries the shift of VP8 picture numbers, which changes at the same places.
// The zero value starts with the first source's own numbers.
type renumberer struct {
	started bool
	highest uint16 // of the source, among those seen
	last    uint16 // highest number given out

	lost int // packets in a row that had no place

	history [historySize]shiftFrom
	used    int // entries of history in use
	newest  int // index of the newest
}

// A shiftFrom is the shift that applies from a source number on.
type shiftFrom struct {
	from uint16
	seq  uint16
	vp8  vp8Shift
}

// restart makes in, of a new source, follow what was given out last.
func (r *renumberer) restart(in uint16, vp8 vp8Shift) {
	shift := uint16(0)
	if r.started {
		shift = in - (r.last + 1)
	} else {
		r.last = in - 1
	}
	r.started = true
	r.highest = in - 1
	r.used, r.newest = 1, 0
	r.history[0] = shiftFrom{from: in, seq: shift, vp8: vp8}
}

// next returns the number of a packet to be forwarded. ok is false for one
// that is too old to have a place.
func (r *renumberer) next(in uint16) (out uint16, vp8 vp8Shift, ok bool) {
	if !r.started {
		r.restart(in, vp8Shift{})
	}
	s, ok := r.find(in)
	if !ok {
		if r.lost++; r.lost < lostCause {
			return 0, vp8Shift{}, false
		}
		s = r.history[r.newest]
		r.restart(in, s.vp8)
		s = r.history[r.newest]
	}
	r.lost = 0
	out = in - s.seq
	if before(r.highest, in) {
		r.highest = in
		r.forget()
	}
	if before(r.last, out) {
		r.last = out
	}
	return out, s.vp8, true
}

// skip leaves a packet out: if it is the newest, those after it close the gap,
// otherwise its number stays unused. pictures is 1 when a whole VP8 picture
// goes with it.
func (r *renumberer) skip(in uint16, pictures uint16) {
	if !r.started || !before(r.highest, in) {
		return
	}
	// Numbers that are missing between may still come, with the old shift.
	s := r.history[r.newest]
	r.highest = in
	s.from = in + 1
	s.seq++
	s.vp8.pid += pictures
	r.newest = (r.newest + 1) % historySize
	r.history[r.newest] = s
	r.used = min(r.used+1, historySize)
	r.forget()
}

// forget moves up where the oldest remembered shift begins, so that numbers
// never seem to be before it only because half the circle has passed.
func (r *renumberer) forget() {
	if r.highest-r.history[r.newest].from < 2*memory || before(r.highest, r.history[r.newest].from) {
		return
	}
	r.history[0] = r.history[r.newest]
	r.history[0].from = r.highest - memory
	r.newest, r.used = 0, 1
}

// find returns the shift that applies to in.
func (r *renumberer) find(in uint16) (shiftFrom, bool) {
	for n := range r.used {
		s := r.history[(r.newest-n+historySize)%historySize]
		if !before(in, s.from) {
			return s, true
		}
	}
	return shiftFrom{}, false
}
