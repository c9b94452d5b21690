"""The emoji pair, a larger check than the embedded data: train on Google's drawings, test on Microsoft's.

Nothing of it comes with the package; `make emoji` fetches it: pictures from the font Noto Color Emoji (OFL) and from
Fluent 3D (npm @lobehub/fluent-emoji-3d, MIT), names and keywords in several languages from emojibase (npm
emojibase-data, MIT).
"""
