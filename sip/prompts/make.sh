#!/bin/sh
# Speaks the announcements of en.txt and de.txt (lines "name|text") with espeak-ng
# and writes them as 8 kHz u-law without a header. Needs espeak-ng and sox.
set -eu
cd "$(dirname "$0")"
for lang in en de; do
	voice=$lang
	[ $lang = en ] && voice=en-gb
	mkdir -p $lang
	while IFS='|' read -r name text; do
		[ -n "$name" ] || continue
		wav=$(mktemp --suffix .wav)
		espeak-ng -v "$voice" -s 150 -g 3 -w "$wav" "$text"
		# The telephone band, levelled, without the silence at both ends.
		sox "$wav" -r 8000 -c 1 -t raw -e mu-law -b 8 "$lang/$name.ulaw" \
			highpass 200 lowpass 3400 norm -6 \
			silence 1 0.02 0.3% reverse silence 1 0.02 0.3% reverse pad 0.05 0.1
		rm -f "$wav"
	done <$lang.txt
done
