package audio

import "testing"

func TestDCBlock(t *testing.T) {
	for _, rate := range []int{8000, 16000} {
		var d DCBlock
		pcm := sine(rate, 300, 0.25, rate)
		for i := range pcm {
			pcm[i] += 3000
		}
		for i := 0; i < len(pcm); i += rate / 50 {
			d.Apply(pcm[i : i+rate/50])
		}
		sum := 0
		for _, x := range pcm[rate/2:] {
			sum += int(x)
		}
		if mean := sum / (rate / 2); mean > 20 || mean < -20 {
			t.Errorf("at %d Hz %d of 3000 is left", rate, mean)
		}
		if a, snr := tonePart(pcm[rate/2:], rate, 300); a < 0.249 || a > 0.251 || snr < 45 {
			t.Errorf("at %d Hz the tone is %.4f with an SNR of %.0f dB", rate, a, snr)
		}
	}
	loud := []int16{32767, -32768, 32767, -32768}
	new(DCBlock).Apply(loud)
	if loud[1] != -32768 || loud[2] != 32767 {
		t.Errorf("loud sound wraps: %v", loud)
	}
}
