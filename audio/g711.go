package audio

import "math/bits"

// ULaw is G.711 with the mu-law of North America and Japan (PCMU, payload type 0).
// It has no state.
type ULaw struct{}

// ALaw is G.711 with the A-law of everybody else (PCMA, payload type 8). It has no state.
type ALaw struct{}

var (
	ulawValues = [256]int16(law(ulawValue))
	alawValues = [256]int16(law(alawValue))
)

func law(value func(byte) int16) []int16 {
	t := make([]int16, 256)
	for c := range t {
		t[c] = value(byte(c))
	}
	return t
}

// ulawValue follows ITU-T G.711 table 2, scaled from 14 to 16 bits.
func ulawValue(code byte) int16 {
	u := ^code
	v := (int16(u&15)<<3+0x84)<<(u>>4&7) - 0x84
	if u&0x80 != 0 {
		return -v
	}
	return v
}

// alawValue follows ITU-T G.711 table 1, scaled from 13 to 16 bits. Even bits
// are inverted on the wire.
func alawValue(code byte) int16 {
	a := code ^ 0x55
	v := int16(a&15)<<4 + 8
	if e := a >> 4 & 7; e > 0 {
		v = (v + 0x100) << (e - 1)
	}
	if a&0x80 == 0 {
		return -v
	}
	return v
}

// EncodeULaw returns the code of one sample.
func EncodeULaw(x int16) byte {
	sign := byte(x >> 15 & 0x80)
	mag := min(uint(uint16(x^x>>15))>>2+33, 0x1fff) // the magnitude in ones' complement, biased
	e := bits.Len(mag) - 6
	return ^(sign | byte(e)<<4 | byte(mag>>(e+1))&15)
}

// EncodeALaw returns the code of one sample.
func EncodeALaw(x int16) byte {
	sign := ^byte(x>>15) & 0x80
	mag := uint(uint16(x^x>>15)) >> 4
	if mag < 16 {
		return (sign | byte(mag)) ^ 0x55
	}
	e := bits.Len(mag) - 4
	return (sign | byte(e)<<4 | byte(mag>>(e-1))&15) ^ 0x55
}

// Encode writes one octet for each sample.
func (ULaw) Encode(pcm []int16, out []byte) (int, error) {
	if len(out) < len(pcm) {
		return 0, ErrBuffer
	}
	for i, x := range pcm {
		out[i] = EncodeULaw(x)
	}
	return len(pcm), nil
}

// Decode writes one sample for each octet.
func (ULaw) Decode(payload []byte, pcm []int16) (int, error) {
	return expand(&ulawValues, payload, pcm)
}

// Encode writes one octet for each sample.
func (ALaw) Encode(pcm []int16, out []byte) (int, error) {
	if len(out) < len(pcm) {
		return 0, ErrBuffer
	}
	for i, x := range pcm {
		out[i] = EncodeALaw(x)
	}
	return len(pcm), nil
}

// Decode writes one sample for each octet.
func (ALaw) Decode(payload []byte, pcm []int16) (int, error) {
	return expand(&alawValues, payload, pcm)
}

func expand(values *[256]int16, payload []byte, pcm []int16) (int, error) {
	if len(pcm) < len(payload) {
		return 0, ErrBuffer
	}
	for i, c := range payload {
		pcm[i] = values[c]
	}
	return len(payload), nil
}
