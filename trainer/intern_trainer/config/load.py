"""YAML recipe + key=value overrides + ds_config -> `Config`, with every error found at once."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from intern_trainer.config import checks, ds
from intern_trainer.config.schema import Config
from intern_trainer.errors import ConfigError, ConfigErrors

DEFAULT_RECIPE = Path(__file__).parents[3] / "configs" / "stage1" / "debug.yaml"


def load_config(path: Path | None = None, overrides: Sequence[str] = (), ds_config: Path | None = None) -> Config:
    """Read, merge and check a configuration.

    Args:
        path: a recipe, or the config.yaml of a run; None: the default recipe, `configs/stage1/debug.yaml`.
        overrides: `section.key=value`, values in YAML; a key that holds a list may be given several times
            (a shell that expands `{000..999}` does that). The last one counts for none: a repeated single value is an
            error.
        ds_config: DeepSpeed's own JSON file; None keeps the one that `path` holds (a run's) or none.

    Raises:
        ConfigErrors: all that is wrong, each with what to change.
    """
    errors: list[ConfigError] = []
    tree = _read_yaml(path or DEFAULT_RECIPE, errors)
    for keys, value in _parse_overrides(overrides, errors):
        _put(tree, keys, value, errors)
    if ds_config is not None:
        tree["ds"] = _read_json(ds_config, errors)
    errors += ds.check(tree.get("ds") or {})
    try:
        config = Config.model_validate(tree)
    except ValidationError as invalid:
        raise ConfigErrors(errors + [_explain(error) for error in invalid.errors()]) from None
    errors += checks.check(config)
    if errors:
        raise ConfigErrors(errors)
    return config


def write_config(config: Config, path: Path) -> None:
    """The complete configuration as YAML, such that `load_config(path)` gives it back."""
    tree = config.model_dump(mode="json", by_alias=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False, width=140), encoding="utf-8")


def _read_yaml(path: Path, errors: list[ConfigError]) -> dict[str, Any]:
    text = _read_text(path, "recipe", errors)
    try:
        tree = yaml.safe_load(text) if text is not None else {}
    except yaml.YAMLError as error:
        errors.append(ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}", fix="correct the file there"))
        return {}
    if tree is not None and not isinstance(tree, dict):
        errors.append(ConfigError(f"{path} holds a {type(tree).__name__}", "a recipe is a mapping of sections"))
        return {}
    return tree or {}


def _read_json(path: Path, errors: list[ConfigError]) -> dict[str, Any]:
    text = _read_text(path, "ds_config", errors)
    if text is None:
        return {}
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        errors.append(ConfigError(f"{path} is not JSON: {error}", fix="correct the file there"))
        return {}
    if not isinstance(tree, dict):
        errors.append(ConfigError(f"{path} holds a {type(tree).__name__}", "a ds_config is a JSON object"))
        return {}
    return tree


def _read_text(path: Path, what: str, errors: list[ConfigError]) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
        hint = f"files there: {', '.join(near)}" if near else "recipes lie in configs/, ds_configs in configs/ds/"
        errors.append(ConfigError(f"{what} {path} does not exist", fix=hint))
    except (OSError, UnicodeDecodeError) as error:
        errors.append(ConfigError(f"{what} {path} cannot be read: {error}"))
    return None


def _parse_overrides(overrides: Sequence[str], errors: list[ConfigError]) -> Iterator[tuple[list[str], Any]]:
    given: dict[str, list[Any]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            errors.append(
                ConfigError(
                    f"argument {override!r}", "settings are given as section.key=value", "such as optim.lr=5e-4"
                )
            )
            continue
        given.setdefault(key, []).append(_parse_value(text))
    for key, values in given.items():
        keys = key.split(".")
        if len(values) > 1 and not _holds_list(keys):
            shown = ", ".join(str(v) for v in values)
            errors.append(
                ConfigError(f"{key} is given {len(values)} times: {shown}", "it holds one value", "give it once")
            )
            continue
        yield keys, values if len(values) > 1 else values[0]


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # such as a brace range at the very start
        return text


def _put(tree: dict[str, Any], keys: list[str], value: Any, errors: list[ConfigError]) -> None:
    for depth, key in enumerate(keys[:-1]):
        node = tree.get(key)
        if node is None:
            node = tree[key] = {}
        if not isinstance(node, dict):
            where = ".".join(keys[: depth + 1])
            errors.append(
                ConfigError(f"{'.'.join(keys)}: {where} holds {node!r}", "only sections have keys of their own")
            )
            return
        tree = node
    tree[keys[-1]] = value


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes inside a type such as `list[Source]` or `Wandb | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections(argument)


def _known_keys(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _annotation_at(keys: Sequence[str]) -> Any:
    """The type at a path of keys, or None where the schema has no such key."""
    annotation: Any = Config
    for key in keys:
        annotation = next((_known_keys(m)[key] for m in _sections(annotation) if key in _known_keys(m)), None)
        if annotation is None:
            return None
    return annotation


def _holds_list(keys: Sequence[str]) -> bool:
    return typing.get_origin(_annotation_at(keys)) is list


def _all_paths(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for key, annotation in _known_keys(model).items():
        yield prefix + key
        for section in _sections(annotation):
            yield from _all_paths(section, f"{prefix}{key}.")


def _explain(error: Any) -> ConfigError:
    path = [key for key in error["loc"] if isinstance(key, str)]
    where = ".".join(str(key) for key in error["loc"]) or "the configuration"
    if error["type"] == "extra_forbidden":
        return _unknown_key(path, where)
    if error["type"] == "missing":
        return ConfigError(f"{where} is missing", "it has no default", f"set {where}")
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = error["msg"][0].lower() + error["msg"][1:]
    return ConfigError(f"{where} is {shown}", message.replace("input should be", "it must be"), f"change {where}")


def _unknown_key(path: list[str], where: str) -> ConfigError:
    parent, key = path[:-1], path[-1]
    siblings = [known for section in _sections(_annotation_at(parent)) for known in _known_keys(section)]
    near = [".".join([*parent, sibling]) for sibling in difflib.get_close_matches(key, siblings, 1, 0.6)]
    paths = sorted(set(_all_paths()))
    near += [p for p in paths if p.rsplit(".", 1)[-1] == key]
    near += difflib.get_close_matches(".".join(path), paths, 1, 0.75)
    section = ".".join(parent)
    fix = f"did you mean {near[0]}?" if near else f"keys of {section or 'the top level'}: {', '.join(sorted(siblings))}"
    return ConfigError(f"unknown key {where}", "every key must be one that the schema knows", fix)
