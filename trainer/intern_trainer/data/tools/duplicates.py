"""Pictures that look the same, and captions that are the same.

A picture's hash is the perceptual hash of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions,
2010): grey, 32 x 32, the 8 x 8 lowest frequencies of its cosine transform, one bit each: above their median or not.
It survives other sizes and compressions, and is blind to colour. Two pictures count as the same where at most
`DISTANCE` of 64 bits differ.

Which pairs are that near is found without comparing all: cut the bits into `DISTANCE` + 2 bands, and at least two
bands of a near pair are untouched. So sorting by each pair of bands brings every near pair together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from PIL import Image

DISTANCE = 4
SIDE = 32
"""A JPEG may be decoded down to this for hashing."""
REACH = 2000
"""Of pictures that agree in two bands, each is compared with this many followers: a bound for masses of flat ones."""
_BANDS = DISTANCE + 2
_K = np.arange(SIDE)
_DCT = np.cos(np.pi * (2 * _K + 1) * np.arange(8)[:, None] / (2 * SIDE))
"""Rows of the cosine transform (DCT-II), [8, 32]."""


def picture_hash(picture: Image.Image) -> int:
    """64 bits."""
    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    frequencies = _DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T
    bits = np.packbits((frequencies > np.median(frequencies)).ravel())
    return int.from_bytes(bits.tobytes(), "big")


def caption_hash(caption: str) -> int:
    """64 bits of the caption in lower case, with single blanks."""
    words = " ".join(caption.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


def equal_groups(hash_n: np.ndarray) -> list[np.ndarray]:
    """Positions of equal hashes, one array a group of two or more; largest first."""
    order = np.argsort(hash_n, kind="stable")
    starts = np.flatnonzero(np.diff(hash_n[order], prepend=~hash_n[order[:1]]))
    sizes = np.diff(starts, append=len(order))
    groups = [order[start : start + size] for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True)]
    return sorted(groups, key=len, reverse=True)


def alike_groups(hash_n: np.ndarray) -> list[np.ndarray]:
    """Positions of pictures joined by steps of at most `DISTANCE` bits; largest group first.

    Memory: about 50 bytes a picture, beside `hash_n` (uint64 [n]).
    """
    hash_u, member_n = np.unique(hash_n, return_inverse=True)
    group_of: dict[int, int] = {}

    def root(u: int) -> int:
        while group_of.get(u, u) != u:
            group_of[u] = u = group_of.get(group_of[u], group_of[u])
        return u

    for first, second in near_pairs(hash_u):
        group_of[root(second)] = root(first)
    merged_u = np.arange(len(hash_u))
    for u in group_of:
        merged_u[u] = root(u)
    return equal_groups(merged_u[member_n])


def near_pairs(hash_u: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose hashes (different ones) are near; a pair may come several times."""
    edges = np.linspace(0, 64, _BANDS + 1).astype(int).tolist()
    bands = [((1 << high) - 1) ^ ((1 << low) - 1) for low, high in pairwise(edges)]
    for one, other in combinations(bands, 2):
        key = hash_u & np.uint64(one | other)
        order = np.argsort(key)
        key, sorted_u = key[order], hash_u[order]
        at = np.arange(len(key))
        for step in range(1, REACH + 1):
            at = at[: np.searchsorted(at, len(key) - step)]
            at = at[key[at] == key[at + step]]
            if not len(at):
                break
            near = at[np.bitwise_count(sorted_u[at] ^ sorted_u[at + step]) <= DISTANCE]
            yield from zip(order[near].tolist(), order[near + step].tolist(), strict=True)
