#!/usr/bin/env bash
# Make resources/demo: four short sentences of each of eight synthetic speakers, and all pairs as trials (needs espeak-ng, sox).
# The bundled files were made with espeak-ng 1.51 and sox 14.4.2; other versions give other bytes, equally good.
set -euo pipefail
cd "$(dirname "$0")/../resources/demo"

sentences=(
    "The north wind and the sun had a dispute."
    "A traveller came by, in a warm cloak."
    "Who makes him take it off has won."
    "Then the sun shone, and he took it off."
)
# name, voice, pitch (0 to 99), words a minute
speakers=(
    "anna en-us+Annie 50 165" "bela en-us+grandpa 5 165" "chen en-us+Gene 30 185" "dora en-gb+Alicia 95 175"
    "emil en-us+robosoft 55 175" "fay en-us+steph 50 180" "gus en-gb-scotland+m1 55 165" "hugo en-gb+Lee 5 175"
)

spoken=$(mktemp --suffix .wav)
trap 'rm -f "$spoken"' EXIT
rm -rf -- */[0-9].flac
echo "id,audio,speaker" > metadata.csv
for speaker in "${speakers[@]}"; do
    read -r name voice pitch speed <<< "$speaker"
    mkdir -p "$name"
    for number in "${!sentences[@]}"; do
        file="$name/$((number + 1)).flac"
        espeak-ng -v "$voice" -p "$pitch" -s "$speed" -w "$spoken" "${sentences[$number]}"
        sox -R -v 0.8 "$spoken" --rate 16000 --compression 8 "$file" silence 1 0.05 0.5% reverse silence 1 0.05 0.5% reverse
        echo "$name/$((number + 1)),$file,$name" >> metadata.csv
    done
done
awk -F, 'NR > 1 {
    for (i = 1; i < NR - 1; i++) print ids[i] "," $1 "," (speakers[i] == $3)
    ids[NR - 1] = $1; speakers[NR - 1] = $3
}' metadata.csv | { echo "enrollment,test,label"; cat; } > trials.csv
