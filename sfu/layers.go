package sfu

import (
	"cmp"
	"slices"
)

// heightTolerance lets a layer count as high enough when it is that much
// lower than what the client shows, in percent.
const heightTolerance = 5

// ridRank orders the RIDs that LiveKit clients use; others sort by quality.
func ridRank(rid string) int {
	switch rid {
	case "q":
		return 0
	case "h":
		return 1
	case "f":
		return 2
	}
	return -1
}

// orderLayers sorts layers from low to high and drops repeated qualities.
func orderLayers(layers []Layer) []Layer {
	out := slices.Clone(layers)
	slices.SortStableFunc(out, func(a, b Layer) int { return cmp.Compare(a.Quality.rank(), b.Quality.rank()) })
	return slices.CompactFunc(out, func(a, b Layer) bool { return a.Quality == b.Quality })
}

// wantedLayer returns the index of the layer that serves st best: the smallest
// one that covers the wanted height, else the wanted quality. layers are in
// order from low to high; without layers the answer is 0.
func wantedLayer(layers []Layer, st TrackSettings) int {
	if len(layers) == 0 {
		return 0
	}
	top := len(layers) - 1
	if st.Width > 0 && st.Height > 0 {
		for i, l := range layers {
			// Compare the shorter sides: a portrait source may be shown in a
			// landscape tile.
			have, want := min(l.Width, l.Height), min(st.Width, st.Height)
			if have == 0 {
				break
			}
			if uint64(have)*100 >= uint64(want)*(100-heightTolerance) {
				return i
			}
		}
		return top
	}
	best := 0
	for i, l := range layers {
		if l.Quality.rank() <= st.Quality.rank() {
			best = i
		}
	}
	return best
}

// wantedQuality is wantedLayer as the quality that publishers know.
func wantedQuality(layers []Layer, st TrackSettings) Quality {
	if len(layers) == 0 {
		return QualityHigh
	}
	if len(layers) == 1 {
		return QualityHigh // whatever the only layer is called, it is wanted
	}
	return layers[wantedLayer(layers, st)].Quality
}

// maxTemporal turns a wanted frame rate into a number of temporal layers,
// assuming the usual three that halve 30 frames per second twice.
func maxTemporal(fps uint32) int {
	switch {
	case fps == 0 || fps > 15:
		return 2
	case fps > 8:
		return 1
	}
	return 0
}

// chooseLayer picks what to forward: the wanted layer if it is live, else the
// next lower live one, else the next higher; -1 if none is live.
func chooseLayer(want int, live [maxLayers]bool) int {
	want = min(max(want, 0), maxLayers-1)
	for i := want; i >= 0; i-- {
		if live[i] {
			return i
		}
	}
	for i := want + 1; i < maxLayers; i++ {
		if live[i] {
			return i
		}
	}
	return -1
}
