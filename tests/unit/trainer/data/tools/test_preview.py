"""The page of `data preview`: whole, self-contained, and showing what training would see."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from intern_trainer.data.tools.preview import preview
from intern_trainer.errors import DataError
from PIL import Image

from tests.unit.trainer.data.shards import config, good, write_shard


def test_a_page_with_pictures_views_captions_and_reasons(tmp_path: Path) -> None:
    several = {**good(2), "txt": b"<b>bold</b>"}
    location = str(write_shard(tmp_path / "s.tar", [good(1), several, {"png": b"broken", "txt": b"x"}]))
    page = preview([location], config(location), 1, tmp_path / "new" / "page.html", count=10).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    images = [Image.open(io.BytesIO(base64.b64decode(code))) for code in re.findall(r"webp;base64,([^\"]+)", page)]
    assert sorted(image.size for image in images) == [(8, 8)] * 4 + [(20, 16)] * 2
    views = [np.asarray(image) for image in images if image.size == (8, 8)]
    assert any((views[0] != view).any() for view in views[1:])
    for expected in (
        "caption 1",
        "&lt;b&gt;bold&lt;/b&gt;",
        "s/000000",
        "20 x 16",
        "picture corrupt: 6 bytes",
        "3 in 1",
    ):
        assert expected in page
    assert "<b>bold" not in page


def test_the_choice_is_the_seeds(tmp_path: Path) -> None:
    location = str(write_shard(tmp_path / "s.tar", [good(n) for n in range(30)]))

    def ids(seed: int) -> list[str]:
        page = preview([location], config(location), 1, tmp_path / "page.html", count=5, seed=seed).read_text()
        return re.findall(r"<code>(s/\d+)</code>", page)

    assert ids(1) == ids(1) != ids(2)
    assert len(set(ids(1))) == 5


def test_no_usable_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the shards can be used"):
        preview([f"{tmp_path}/no.tar"], config(f"{tmp_path}/no.tar"), 1, tmp_path / "page.html")
