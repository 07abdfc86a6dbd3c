package audio

// G.722 at 64 kbit/s: a pair of quadrature mirror filters splits sound at 16 kHz into
// two bands of 4 kHz, and each band is coded by adaptive differential PCM, with 6 bits
// for the lower and 2 for the upper. Names in comments are those of ITU-T G.722 §6.

var (
	// QMF (§5.2.1): one half of the symmetric filter of 24 taps, by even and odd index.
	g722Even = [12]int32{3, -11, 12, 32, -210, 951, 3876, -805, 362, -156, 53, -11}

	// Lower band. Q6 holds decision levels, QM6 and QM4 the output levels for 6 bits
	// and for the 4 bits that drive the adaptation.
	g722Q6 = [30]int32{0, 35, 72, 110, 150, 190, 233, 276, 323, 370, 422, 473, 530, 587, 650, 714, 786, 858, 940, 1023,
		1121, 1219, 1339, 1458, 1612, 1765, 1980, 2195, 2557, 2919}
	g722QM6 = [64]int32{
		-136, -136, -136, -136, -24808, -21904, -19008, -16704, -14984, -13512, -12280, -11192, -10232, -9360, -8576, -7856,
		-7192, -6576, -6000, -5456, -4944, -4464, -4008, -3576, -3168, -2776, -2400, -2032, -1688, -1360, -1040, -728,
		24808, 21904, 19008, 16704, 14984, 13512, 12280, 11192, 10232, 9360, 8576, 7856, 7192, 6576, 6000, 5456,
		4944, 4464, 4008, 3576, 3168, 2776, 2400, 2032, 1688, 1360, 1040, 728, 432, 136, -432, -136}
	g722QM4 = [16]int32{0, -20456, -12896, -8968, -6288, -4240, -2584, -1200, 20456, 12896, 8968, 6288, 4240, 2584, 1200, 0}
	// WL after RL42: the change of the lower scale factor for each 4-bit code.
	g722WL = [16]int32{-60, 3042, 1198, 538, 334, 172, 58, -30, 3042, 1198, 538, 334, 172, 58, -30, -60}

	// Upper band. Codes 0 and 2 are the outer levels.
	g722QM2 = [4]int32{-7408, -1616, 7408, 1616}
	g722WH  = [4]int32{798, -214, 798, -214}

	// ILB: the fraction of the logarithmic scale factor made linear.
	g722ILB = [32]int32{2048, 2093, 2139, 2186, 2233, 2282, 2332, 2383, 2435, 2489, 2543, 2599, 2656, 2714, 2774, 2834,
		2896, 2960, 3025, 3091, 3158, 3228, 3298, 3371, 3444, 3520, 3597, 3676, 3756, 3838, 3922, 4008}
)

// saturate is LIMIT of the recommendation.
func saturate(v int32) int32 { return max(min(v, 32767), -32768) }

// g722Band is the predictor and the quantiser's adaptation of one band (blocks 3 and 4).
type g722Band struct {
	s   int32 // predicted signal
	sz  int32 // its part from the zero section
	nb  int32 // logarithmic scale factor
	det int32 // quantiser step

	r1, r2 int32    // reconstructed signals
	a1, a2 int32    // pole section
	p1, p2 int32    // partially reconstructed signals
	d      [6]int32 // quantised differences
	b      [6]int32 // zero section
}

// adapt takes the change of the scale factor for the code just seen (LOGSCL, SCALEL;
// LOGSCH, SCALEH).
func (b *g722Band) adapt(change, limit, shift int32) {
	b.nb = max(min(b.nb*127>>7+change, limit), 0)
	fraction, exponent := g722ILB[b.nb>>6&31], shift-b.nb>>11
	if exponent < 0 {
		b.det = fraction << -exponent << 2
	} else {
		b.det = fraction >> exponent << 2
	}
}

// predict takes the quantised difference dx and computes the next prediction
// (block 4: RECONS, PARREC, UPPOL2, UPPOL1, UPZERO, DELAYA, FILTEP, FILTEZ, PREDIC).
func (b *g722Band) predict(dx int32) {
	r0 := saturate(b.s + dx)
	p0 := saturate(b.sz + dx)

	// UPPOL2
	sameP1, sameP2 := p0^b.p1 >= 0, p0^b.p2 >= 0
	w := saturate(b.a1 << 2)
	if sameP1 {
		w = min(-w, 32767)
	}
	w >>= 7
	if sameP2 {
		w += 128
	} else {
		w -= 128
	}
	a2 := max(min(w+b.a2*32512>>15, 12288), -12288)

	// UPPOL1
	a1 := b.a1 * 32640 >> 15
	if sameP1 {
		a1 += 192
	} else {
		a1 -= 192
	}
	bound := 15360 - a2
	a1 = max(min(a1, bound), -bound)

	// UPZERO and FILTEZ in one pass, oldest first so that the line can move.
	gain := int32(128)
	if dx == 0 {
		gain = 0
	}
	sz := int32(0)
	for i := 5; i >= 0; i-- {
		coefficient := b.b[i] * 32640 >> 15
		if dx^b.d[i] >= 0 {
			coefficient += gain
		} else {
			coefficient -= gain
		}
		b.b[i] = coefficient
		newer := dx
		if i > 0 {
			newer = b.d[i-1]
		}
		b.d[i] = newer
		sz += saturate(newer+newer) * coefficient >> 15
	}

	b.r2, b.r1 = b.r1, r0
	b.p2, b.p1 = b.p1, p0
	b.a1, b.a2 = a1, a2
	b.sz = saturate(sz)
	sp := saturate(saturate(b.r1+b.r1)*a1>>15 + saturate(b.r2+b.r2)*a2>>15)
	b.s = saturate(sp + b.sz)
}

// lower takes the 6-bit code of the lower band and moves the predictor on.
func (b *g722Band) lower(code int32) {
	four := code >> 2
	dx := b.det * g722QM4[four] >> 15
	b.adapt(g722WL[four], 18432, 8)
	b.predict(dx)
}

// upper takes the 2-bit code of the upper band and moves the predictor on.
func (b *g722Band) upper(code int32) {
	dx := b.det * g722QM2[code] >> 15
	b.adapt(g722WH[code], 22528, 10)
	b.predict(dx)
}

// G722Encoder encodes sound at 16 kHz to 64 kbit/s.
type G722Encoder struct {
	low, high g722Band
	line      [24]int32 // the last samples, oldest first
}

// NewG722Encoder returns an encoder in the state of the recommendation's reset.
func NewG722Encoder() *G722Encoder {
	return &G722Encoder{low: g722Band{det: 32}, high: g722Band{det: 8}}
}

// Encode writes one octet for each two samples.
func (e *G722Encoder) Encode(pcm []int16, out []byte) (int, error) {
	n := len(pcm) / 2
	if len(out) < n {
		return 0, ErrBuffer
	}
	for i := range n {
		copy(e.line[:], e.line[2:])
		e.line[22], e.line[23] = int32(pcm[2*i]), int32(pcm[2*i+1])
		var odd, even int32
		for k, c := range g722Even {
			odd += e.line[2*k] * c
			even += e.line[2*k+1] * g722Even[11-k]
		}
		out[i] = byte(e.encodeHigh((even-odd)>>14)<<6 | e.encodeLow((even+odd)>>14))
	}
	return n, nil
}

// encodeLow is SUBTRA, QUANTL and the adaptation.
func (e *G722Encoder) encodeLow(x int32) int32 {
	diff := saturate(x - e.low.s)
	magnitude := diff
	if diff < 0 {
		magnitude = ^diff
	}
	level := int32(1)
	for level < 30 && magnitude >= g722Q6[level]*e.low.det>>12 {
		level++
	}
	var code int32
	switch { // ILN, ILP: level 1 is the smallest
	case diff >= 0:
		code = 62 - level
	case level <= 2:
		code = 64 - level
	default:
		code = 34 - level
	}
	e.low.lower(code)
	return code
}

// encodeHigh is SUBTRA, QUANTH and the adaptation.
func (e *G722Encoder) encodeHigh(x int32) int32 {
	diff := saturate(x - e.high.s)
	magnitude, code := diff, int32(3)
	if diff < 0 {
		magnitude, code = ^diff, 1
	}
	if magnitude >= 564*e.high.det>>12 {
		code--
	}
	e.high.upper(code)
	return code
}

// G722Decoder decodes 64 kbit/s to sound at 16 kHz.
type G722Decoder struct {
	low, high g722Band
	line      [24]int32 // sums and differences of the bands, oldest first
}

// NewG722Decoder returns a decoder in the state of the recommendation's reset.
func NewG722Decoder() *G722Decoder {
	return &G722Decoder{low: g722Band{det: 32}, high: g722Band{det: 8}}
}

// Decode writes two samples for each octet. Every octet is valid.
func (d *G722Decoder) Decode(payload []byte, pcm []int16) (int, error) {
	n := 2 * len(payload)
	if len(pcm) < n {
		return 0, ErrBuffer
	}
	for i, octet := range payload {
		low, high := int32(octet&63), int32(octet>>6)
		rl := clip14(d.low.s + d.low.det*g722QM6[low]>>15)
		d.low.lower(low)
		rh := clip14(d.high.s + d.high.det*g722QM2[high]>>15)
		d.high.upper(high)

		copy(d.line[:], d.line[2:])
		d.line[22], d.line[23] = rl+rh, rl-rh
		var first, second int32
		for k, c := range g722Even {
			second += d.line[2*k] * c
			first += d.line[2*k+1] * g722Even[11-k]
		}
		pcm[2*i] = int16(saturate(first >> 11))
		pcm[2*i+1] = int16(saturate(second >> 11))
	}
	return n, nil
}

// clip14 bounds a band's signal as LIMIT does before the receiving QMF.
func clip14(v int32) int32 { return max(min(v, 16383), -16384) }
