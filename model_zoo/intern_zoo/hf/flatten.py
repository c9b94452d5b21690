"""Make one self-contained Python file of a module and of all that it uses from our packages.

Every top-level definition that the root's public names reach is copied with its comments; imports of our packages
vanish, imports of others stay. What cannot be flattened without guessing is an error: an imported module object, two
definitions of one name, a package that is not allowed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OUR_PACKAGES = ("intern_kernels", "intern_zoo")
FUTURE = "from __future__ import annotations"


class FlattenError(ValueError):
    """The source uses something that one file cannot hold: a bug of ours, found when exporting."""


@dataclass
class _Import:
    """`name` is None for `import module [as alias]`."""

    module: str
    name: str | None
    alias: str

    @property
    def text(self) -> str:
        if self.name is None:
            return f"import {self.module}" + (f" as {self.alias}" if self.alias != self.module else "")
        return f"from {self.module} import {self.name}" + (f" as {self.alias}" if self.alias != self.name else "")


@dataclass
class _Module:
    """A parsed module: where each top-level name comes from, and which definitions are wanted."""

    name: str
    source: str
    tree: ast.Module
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, _Import] = field(default_factory=dict)
    wanted: set[ast.stmt] = field(default_factory=set)
    uses: dict[str, None] = field(default_factory=dict)


def flatten(root: str, replace: Mapping[str, str], third_party: tuple[str, ...]) -> str:
    """The source text of one file that defines what `root.__all__` names.

    Args:
        root: full name of the module to begin at.
        replace: modules of ours whose place another one of ours takes, such as an op's plain reference.
        third_party: packages that may be imported besides the standard library.

    Raises:
        FlattenError: see the module's text.
    """
    flattener = _Flattener(dict(replace), third_party)
    for name in flattener.public_names(root):
        flattener.want(root, name)
    return flattener.text(root)


class _Flattener:
    def __init__(self, replace: dict[str, str], third_party: tuple[str, ...]) -> None:
        self.replace, self.third_party = replace, third_party
        self.modules: dict[str, _Module] = {}
        self.owners: dict[str, str] = {}
        self.external: dict[str, _Import] = {}
        self.done: set[tuple[str, str]] = set()

    def public_names(self, root: str) -> list[str]:
        definition = self.module(root).definitions.get("__all__")
        if not isinstance(definition, ast.Assign):
            raise FlattenError(f"{root} has no __all__, which says what its file must define")
        return ast.literal_eval(definition.value)

    def module(self, name: str) -> _Module:
        name = self.replace.get(name, name)
        if name not in self.modules:
            self.modules[name] = _parse(name)
        return self.modules[name]

    def want(self, module_name: str, name: str) -> None:
        """Take `name` of a module, and all that it uses, into the file."""
        module = self.module(module_name)
        if (module.name, name) in self.done:
            return
        self.done.add((module.name, name))
        if name in module.definitions:
            self._want_definition(module, name)
        elif name in module.imports:
            self._want_import(module, module.imports[name])
        else:
            raise FlattenError(f"{module.name} does not define {name} at its top level")

    def _want_definition(self, module: _Module, name: str) -> None:
        owner = self.owners.setdefault(name, module.name)
        if owner != module.name or name in self.external:
            raise FlattenError(f"{name} is defined twice: in {owner} and in {module.name}")
        definition = module.definitions[name]
        module.wanted.add(definition)
        for node in ast.walk(definition):
            if isinstance(node, ast.Import | ast.ImportFrom):
                raise FlattenError(f"{module.name}.{name} imports inside of a function (line {node.lineno})")
            if isinstance(node, ast.Name) and (node.id in module.definitions or node.id in module.imports):
                self.want(module.name, node.id)

    def _want_import(self, module: _Module, wanted: _Import) -> None:
        package = wanted.module.partition(".")[0]
        if package in OUR_PACKAGES:
            if wanted.name is None or wanted.name != wanted.alias:
                raise FlattenError(f"{module.name}: `{wanted.text}` must import a name, as it is")
            module.uses[self.module(wanted.module).name] = None
            self.want(wanted.module, wanted.name)
        elif package in self.third_party or package in sys.stdlib_module_names:
            known = self.external.setdefault(wanted.alias, wanted)
            if known != wanted or wanted.alias in self.owners:
                raise FlattenError(f"{wanted.alias} has two meanings: `{known.text}` and `{wanted.text}`")
        else:
            raise FlattenError(f"{module.name} imports {package}; the file may import {', '.join(self.third_party)}")

    def text(self, root: str) -> str:
        """The file: imports, then every module's definitions, those that others use first."""
        ordered: dict[str, None] = {}

        def visit(name: str) -> None:
            for used in self.modules[name].uses:
                visit(used)
            ordered.setdefault(name)

        visit(self.module(root).name)
        plain = sorted(i.text for i in self.external.values() if i.name is None)
        named: dict[str, list[str]] = {}
        for i in self.external.values():
            if i.name is not None:
                named.setdefault(i.module, []).append(i.name if i.name == i.alias else f"{i.name} as {i.alias}")
        by_name = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
        parts = ["\n".join([FUTURE, "", *plain, *by_name])]
        parts += [_module_text(self.modules[name]) for name in ordered if self.modules[name].wanted]
        return "\n\n\n".join(parts) + "\n"


def _parse(name: str) -> _Module:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FlattenError(f"no source of {name} was found")
    source = Path(spec.origin).read_text(encoding="utf-8")
    module = _Module(name, source, ast.parse(source))
    for statement in module.tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                bound = alias.asname or alias.name
                module.imports[bound.partition(".")[0]] = _Import(alias.name, None, bound)
        elif isinstance(statement, ast.ImportFrom):
            if statement.level:
                raise FlattenError(f"{name}: relative import in line {statement.lineno}")
            for alias in statement.names:
                module.imports[alias.asname or alias.name] = _Import(
                    str(statement.module), alias.name, alias.asname or alias.name
                )
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            module.definitions[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            module.definitions.update({target.id: statement for target in targets if isinstance(target, ast.Name)})
    return module


def _module_text(module: _Module) -> str:
    """The wanted definitions in the order of the source, under the module's own description as a comment."""
    lines = module.source.splitlines()
    about = [f"From {module.name}: {ast.get_docstring(module.tree) or ''}".rstrip()]
    parts = ["\n".join(f"# {line}".rstrip() for text in about for line in text.splitlines())]
    body = module.tree.body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if statement not in module.wanted:
            continue
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(decorator.lineno for decorator in decorators)]) - 1
        while first > 0 and lines[first - 1].startswith("#"):  # comments that stand right above it
            first -= 1
        last = statement.end_lineno
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):  # a value's description
            last = following.end_lineno
        parts.append("\n".join(lines[first:last]))
    return "\n\n\n".join(parts)
