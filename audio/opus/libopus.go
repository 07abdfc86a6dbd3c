//go:build libopus && cgo

package opus

/*
#cgo pkg-config: opus
#include <opus.h>
*/
import "C"

import "fmt"

// libopus is the reference implementation, for tests with the tag libopus only: it
// wants the development files of libopus and a C compiler.
type libopus struct{ dec *C.OpusDecoder }

func newLibopus(rate int) (*libopus, error) {
	var code C.int
	dec := C.opus_decoder_create(C.opus_int32(rate), 1, &code)
	if code != C.OPUS_OK {
		return nil, fmt.Errorf("libopus: error %d", int(code))
	}
	return &libopus{dec}, nil
}

func (l *libopus) decode(packet []byte, pcm []int16) (int, error) {
	n := C.opus_decode(l.dec, (*C.uchar)(&packet[0]), C.opus_int32(len(packet)), (*C.opus_int16)(&pcm[0]), C.int(len(pcm)), 0)
	if n < 0 {
		return 0, fmt.Errorf("libopus: error %d", int(n))
	}
	return int(n), nil
}

func (l *libopus) close() { C.opus_decoder_destroy(l.dec) }
