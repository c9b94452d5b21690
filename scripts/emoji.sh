#!/usr/bin/env bash
# What `make emoji` runs: fetch the emoji pair into $EMOJI/raw (no root needed) and build its shards in $EMOJI.
# FONT=/path/NotoColorEmoji.ttf takes a font that is there already, on systems without apt.
set -euo pipefail

say() { printf '\033[1m[emoji]\033[0m %s\n' "$*"; }

needed=(npm tar)
[ -n "${FONT:-}" ] || needed+=(apt-get dpkg-deb)
missing=()
for command in "${needed[@]}"; do command -v "$command" >/dev/null || missing+=("$command"); done
if [ ${#missing[@]} -gt 0 ]; then
  echo "emoji: missing commands: ${missing[*]}. On Debian: apt-get install npm apt dpkg tar." >&2
  echo "emoji: without apt-get: install the font Noto Color Emoji and give FONT=/path/NotoColorEmoji.ttf make emoji" >&2
  exit 2
fi

mkdir -p "$EMOJI/raw"
raw=$(cd "$EMOJI/raw" && pwd)

fetch_npm() {  # folder, package@version, file that npm makes of it
  [ -d "$raw/$1" ] && return
  say "fetching $2 (npm)"
  (cd "$raw" && npm pack --silent "$2" >/dev/null && mkdir -p "$1.partial" && tar -xzf "$3" -C "$1.partial" && rm -f "$3" && mv "$1.partial" "$1")
}

if [ -z "${FONT:-}" ]; then
  if [ ! -d "$raw/font" ]; then
    say "fetching fonts-noto-color-emoji (apt)"
    (cd "$raw" && apt-get -o APT::Sandbox::User=root download fonts-noto-color-emoji >/dev/null && dpkg-deb -x fonts-noto-color-emoji_*.deb font.partial && rm -f fonts-noto-color-emoji_*.deb && mv font.partial font)
  fi
  FONT=$raw/font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
fi
fetch_npm fluent @lobehub/fluent-emoji-3d@1.1.0 lobehub-fluent-emoji-3d-1.1.0.tgz
fetch_npm emojibase emojibase-data@17.0.0 emojibase-data-17.0.0.tgz

say "drawing and packing"
"$BIN/python" -m intern_trainer.data.emoji.build "$FONT" "$raw/fluent/package/assets" "$raw/emojibase/package" --out "$EMOJI"
say "train on it: $BIN/python trainer/run.py --config configs/stage1/emoji.yaml"
