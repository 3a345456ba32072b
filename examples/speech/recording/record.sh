#!/usr/bin/env bash
# Speak two sentences with a pause between them into ../speech.wav: mono, 16 bits, 16,000 samples a second.
# Needs espeak-ng and sox: apt-get install espeak-ng sox
set -euo pipefail
cd "$(dirname "$0")"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { espeak-ng -v en-gb -s 165 -w "$scratch/$1.wav" "$2"; }

say first "The flowers were measured by hand."
say second "Which species is it?"
# What espeak-ng leaves at both ends is cut off, so that the silences are as long as written here.
for name in first second; do
    sox -D "$scratch/$name.wav" -r 16000 -c 1 -b 16 "$scratch/cut-$name.wav" \
        silence 1 0.01 0.5% reverse silence 1 0.01 0.5% reverse
done
sox -D "$scratch/cut-first.wav" "$scratch/padded-first.wav" pad 0.3 0.9
sox -D "$scratch/cut-second.wav" "$scratch/padded-second.wav" pad 0 0.4
sox -D "$scratch/padded-first.wav" "$scratch/padded-second.wav" ../speech.wav
for name in first second; do
    printf '%s sentence: %s s\n' "$name" "$(soxi -D "$scratch/cut-$name.wav")"
done
