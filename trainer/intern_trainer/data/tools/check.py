"""`intern-trainer data check`: read every sample as training would, and name those that it would skip."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from intern_trainer.config.schema import Config
from intern_trainer.data import captions, decode
from intern_trainer.data.captions import CaptionRules
from intern_trainer.data.decode import BadSample
from intern_trainer.data.tools.pieces import Piece, choose, read, sample_id
from intern_trainer.data.tools.pool import each
from intern_trainer.data.tools.results import write_text
from intern_trainer.errors import DataError

SHARD = "shard unusable"


@dataclass(frozen=True)
class Finding:
    """One sample, or one whole shard (without a key), that cannot be used."""

    id: str
    shard: str
    key: str
    kind: str
    reason: str


def check(locations: list[str], config: Config, workers: int, to: Path | None = None) -> int:
    """Print every bad sample and shard, then how many there are of each kind; gives 1 if there are any, else 0.

    Args:
        to: a file for the findings, one JSON object a line.
    """
    chosen = choose(locations, config.data, workers)
    findings = [_shard(shard, error) for shard, error in chosen.failures.items()]
    for finding in findings:
        _say(finding)
    for part in each(partial(_check_piece, config), chosen.pieces, workers, "samples", Piece.__len__):
        for finding in part:
            _say(finding)
        findings += part
    if to is not None:
        write_text(to, "".join(json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in findings))
    kinds = Counter(finding.kind for finding in findings)
    unusable = kinds.pop(SHARD, 0)
    print(f"bad: {kinds.total():,} of {chosen.samples:,} samples, {unusable:,} of {chosen.shards:,} shard(s)")
    for kind, count in kinds.most_common():
        print(f"  {count:,} {kind}")
    return 1 if findings else 0


def _check_piece(config: Config, piece: Piece) -> list[Finding]:
    findings = []
    rules = CaptionRules.of(config.data)
    try:
        for member in read(piece, config.data):
            try:
                content = decode.picture_bytes(member.content)
                captions.captions(member.content, captions.record(member.content), rules)
                decode.picture(content, config.data.max_pixels)
            except BadSample as bad:
                id = sample_id(piece.shard, member.key)
                findings.append(Finding(id, piece.shard, member.key, bad.kind, bad.reason))
    except DataError as error:
        findings.append(_shard(piece.shard, error))
    return findings


def _shard(shard: str, error: DataError) -> Finding:
    return Finding(sample_id(shard, ""), shard, "", SHARD, error.found)


def _say(finding: Finding) -> None:
    print(f"{finding.id}: {finding.reason}" if finding.key else finding.reason, flush=True)
