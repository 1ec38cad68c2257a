#!/usr/bin/env bash
# Make resources/demo: a dozen short sentences of four synthetic speakers (needs espeak-ng and sox).
# The bundled files were made with espeak-ng 1.51 and sox 14.4.2; other versions give other bytes, equally good.
set -euo pipefail
cd "$(dirname "$0")/../resources/demo"

sentences=(
    "The north wind and the sun disputed which was the stronger."
    "A traveller came along, wrapped in a warm cloak."
    "Who makes him take it off first shall have won."
)
# name, voice, pitch (0 to 99), words a minute
speakers=("anna en-us+f2 62 165" "bela en-gb+m3 38 150" "chen en-us+m7 25 180" "dora en-gb-scotland+f4 75 140")

spoken=$(mktemp --suffix .wav)
trap 'rm -f "$spoken"' EXIT
echo "id,audio,speaker" > metadata.csv
for speaker in "${speakers[@]}"; do
    read -r name voice pitch speed <<< "$speaker"
    mkdir -p "$name"
    for number in "${!sentences[@]}"; do
        file="$name/$((number + 1)).flac"
        espeak-ng -v "$voice" -p "$pitch" -s "$speed" -w "$spoken" "${sentences[$number]}"
        sox -R "$spoken" --rate 16000 --compression 8 "$file"
        echo "$name/$((number + 1)),$file,$name" >> metadata.csv
    done
done
