"""What lies where in a checkpoint, and how a file gets there so that it is there after a power cut.

    RUN/checkpoints/step-00001000/
        manifest.json                          written last: size and SHA-256 of each other file, a checksum of itself
        tensors.json                           kind -> name -> shape and type of each full tensor
        rank-00000.json                        where the pieces that rank 0 wrote are, and its random number generators
        rank-00000-weights-0000.safetensors    pieces of parameters and buffers, 1-D, at most `FILE_BYTES` a file
        rank-00000-ema-0000.safetensors        (kinds in files of their own: an export reads no optimizer state)
        rank-00000-optim-0000.safetensors
        progress.json  config.json             position of the run; the whole configuration

A checkpoint under way has the name `.tmp-step-...`, one that is replaced `.old-step-...`, one that is being deleted
`.gone-step-...`; only a complete one is called `step-...`.

Everything is JSON or safetensors: nothing is ever unpickled. `sha256sum` checks a file by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from intern_trainer.errors import CheckpointError

FORMAT, VERSION = "intern-checkpoint", 1
MANIFEST, TENSORS, PROGRESS, CONFIG = "manifest.json", "tensors.json", "progress.json", "config.json"
FILE_BYTES = 512 << 20
"""Size of a full shard file; a rank holds on to at most that much per group of kinds of what an engine yields."""
OLDER = "go back to an older checkpoint (`--checkpoint RUN/checkpoints/step-...`), or write it anew"

DIVERGED = (
    "go on from the last checkpoint with a lower optim.lr, a longer optim.schedule.warmup_steps, or "
    "train.precision=bf16 or fp32"
)

_STEP = re.compile(r"step-(\d{8,})")
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def step_dir(run_dir: Path, step: int) -> Path:
    return checkpoints_dir(run_dir) / f"step-{step:08d}"


def sibling(path: Path, purpose: str) -> Path:
    """The hidden folder beside a checkpoint where it is written (`tmp`), replaced (`old`) or deleted (`gone`)."""
    return path.with_name(f".{purpose}-{path.name}")


def step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not called step-<number>", "a checkpoint's folder carries its step", OLDER)
    return int(match[1])


def step_dirs(run_dir: Path) -> list[Path]:
    """Folders of a run that claim to be checkpoints, oldest first; not those under way or being removed."""
    folder = checkpoints_dir(run_dir)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()), key=step_of)


def inside(folder: Path, name: str) -> Path:
    """`folder/name` for a name that a file told us: a plain file name, so that no index can point elsewhere."""
    if not _SAFE.fullmatch(name):
        raise CheckpointError(
            f"{folder} lists a file called {name!r}", "names in a checkpoint are plain file names", OLDER
        )
    return folder / name


def part_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def entry_key(kind: str, name: str, start: int, length: int) -> str:
    """Name of one piece in its safetensors file."""
    return f"{kind}/{name}[{start}:{start + length}]"


def write_json(path: Path, value: Any) -> dict[str, Any]:
    """Write, fsync, and give what the manifest says about the file."""
    data = json.dumps(value, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, as fsync does for a file's contents."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def self_checksum(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of checkpoint `path`, itself checked.

    Raises:
        CheckpointError: no such checkpoint, not finished, damaged, or written by a newer program.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}", fix="give a folder RUN/checkpoints/step-...")
    file = path / MANIFEST
    if not file.exists():
        raise CheckpointError(f"{file} is missing: the checkpoint was not written to its end, or is not one", fix=OLDER)
    try:
        manifest = json.loads(file.read_bytes())
        known = manifest["format"] == FORMAT and isinstance(manifest["version"], int)
        version, intact = manifest["version"], self_checksum(manifest) == manifest["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error})", fix=OLDER) from error
    if not (known and intact):
        raise CheckpointError(f"{file} is damaged: its checksum does not match its contents", fix=OLDER)
    if version > VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this program reads up to {VERSION}",
            fix="use the version of intern-trainer that wrote it (named in its progress.json), or a newer one",
        )
    return manifest
