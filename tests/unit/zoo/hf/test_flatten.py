"""One file of many modules: what is needed and no more; what cannot be done is told."""

from __future__ import annotations

import ast
import sys

import pytest
from intern_zoo.hf import flatten as flattening
from intern_zoo.hf.export import REPLACE
from intern_zoo.hf.flatten import FlattenError, flatten

PARTS = {
    "root": "from intern_fake.parts import Part\nfrom intern_fake.tools import twice\n\n"
    "__all__ = ['Whole']\n\n\nclass Whole(Part):\n    def value(self) -> int:\n        return twice(self.three())\n",
    "parts": '''"""Parts."""
import math
from functools import lru_cache

THREE = 3
"""Why three."""

UNUSED = math.pi


# said above the class
class Part:
    @lru_cache
    def three(self) -> int:
        return THREE
''',
    "tools": "import torchvision\n\n\ndef twice(x):\n    return torchvision.twice(x)\n",
    "plain_tools": "def twice(x):\n    return 2 * x\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Modules of an `intern_fake` package of ours."""

    def make(**modules: str) -> None:
        folder = tmp_path / "intern_fake"
        folder.mkdir()
        for name, source in {"__init__": "", **modules}.items():
            (folder / f"{name}.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(flattening, "OUR_PACKAGES", ("intern_fake",))
    yield make
    for name in [name for name in sys.modules if name.startswith("intern_fake")]:
        del sys.modules[name]


def test_takes_what_is_reached_with_its_comments(package):
    package(**PARTS)
    source = flatten("intern_fake.root", {"intern_fake.tools": "intern_fake.plain_tools"}, ("torch",))
    space: dict = {}
    exec(compile(source, "flat", "exec"), space)
    assert space["Whole"]().value() == 6
    assert "UNUSED" not in source
    assert "import math" not in source
    assert "# said above the class" in source
    assert '"""Why three."""' in source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "imports torchvision"),
        ({"tools": "def twice(x):\n    import torch\n    return x\n"}, "inside of a function"),
        ({"tools": "THREE = 4\n\n\ndef twice(x):\n    return THREE\n"}, "THREE is defined twice"),
        ({"tools": "from . import parts\n\n\ndef twice(x):\n    return x\n"}, "relative import"),
        ({"root": "import intern_fake.parts\n__all__ = ['X']\nX = intern_fake.parts.Part\n"}, "must import a name"),
        ({"root": "from intern_fake.parts import Missing\n__all__ = ['Missing']\n"}, "does not define Missing"),
        ({"root": "X = 1\n"}, "has no __all__"),
    ],
)
def test_refuses_what_one_file_cannot_hold(package, change, message):
    package(**PARTS | change)
    with pytest.raises(FlattenError, match=message):
        flatten("intern_fake.root", {}, ("torch",))


def test_the_two_tower_file_stands_alone():
    source = flatten("intern_zoo.hf.two_tower", REPLACE, ("torch", "transformers"))
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert {name for name in imported if name not in sys.stdlib_module_names} == {"torch", "transformers"}
    assert "create_two_tower" not in source  # only what the model needs
