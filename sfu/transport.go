package sfu

type transport struct{ member *Member }

func newTransport(m *Member) (*transport, error)                { return &transport{m}, nil }
func (t *transport) run()                                       {}
func (t *transport) offer(id uint32, sdp string) error          { return nil }
func (t *transport) answer(id uint32, sdp string) error         { return nil }
func (t *transport) candidate(target Target, init string) error { return nil }
func (t *transport) attach(d *downTrack)                        {}
func (t *transport) detach(d *downTrack)                        {}
func (t *transport) unpublish(u *upTrack)                       {}
func (t *transport) sendData(k DataKind, payload []byte) error  { return nil }
func (t *transport) resumed()                                   {}
func (t *transport) cut()                                       {}
func (t *transport) close()                                     {}
