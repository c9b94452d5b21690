"""The caption of a sample: where it stands, in which language, and which one of several.

A sample's captions are one text, a list of texts, or lists of texts by language. The choice is a function of the
sample's seed, so that it is the same on any rank and worker, and another one in another epoch.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from intern_trainer.config.schema import Data
from intern_trainer.data.decode import BadSample

LANGUAGE = "{language}"
"""Stands for each of `data.languages` in a key."""
UNSAID = ""
"""The language of captions that do not say theirs."""
_TRANSLATION = re.compile(r"([a-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?)\.utf8=(.*)")
"""A line of a translated text member, as Tux Paint's stamps have it: its first line is English."""


@dataclass(frozen=True)
class CaptionRules:
    """Where captions are, which is taken, and what they may be. See `Data`, whose settings these are."""

    keys: tuple[str, ...]
    max_chars: int
    choice: str
    languages: dict[str, float]

    @staticmethod
    def of(data: Data) -> CaptionRules:
        return CaptionRules(tuple(data.caption_keys), data.max_caption_chars, data.caption_choice, data.languages)

    @property
    def members(self) -> set[str]:
        """Extensions of the members that captions and records may stand in."""
        found = {"json"}
        for key in self.keys:
            if not key.startswith("json."):
                found |= {key.replace(LANGUAGE, language) for language in self.languages} if LANGUAGE in key else {key}
        return found


def record(members: dict[str, bytes]) -> dict[str, Any]:
    """The sample's json; {} where it has none."""
    if "json" not in members:
        return {}
    try:
        found = json.loads(members["json"])
    except UnicodeDecodeError as error:
        raise BadSample("caption not UTF-8", f"json is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise BadSample("json corrupt", f"json corrupt: {error}") from error
    return found if isinstance(found, dict) else {}


def caption(members: dict[str, bytes], record: dict[str, Any], rules: CaptionRules, seed: int | None = None) -> str:
    """One caption, by the first of the rules' keys that the sample has.

    Args:
        seed: of the draws; None: the first caption in the first language, as evaluations take it.

    Raises:
        BadSample: there is none that can be used.
    """
    texts = captions(members, record, rules)
    if seed is None:
        return next(iter(texts.values()))[0]
    draw = random.Random(seed)
    if rules.languages:
        [language] = draw.choices(list(texts), [rules.languages.get(name, 1.0) for name in texts])
    else:
        language = draw.choice(list(texts)) if rules.choice == "random" else next(iter(texts))
    return draw.choice(texts[language]) if rules.choice == "random" else texts[language][0]


def captions(members: dict[str, bytes], record: dict[str, Any], rules: CaptionRules) -> dict[str, list[str]]:
    """All captions that `caption` chooses among, by language, the first language first; none is empty.

    Languages that the sample lacks leave their weight to those that it has. Captions that do not say their language
    are taken as they are.

    Raises:
        BadSample: there is none that can be used.
    """
    for key in rules.keys:
        found = _find(key, members, record, rules)
        if found is not None:
            break
    else:
        raise BadSample("caption missing", f"caption is missing: none of data.caption_keys ({', '.join(rules.keys)})")
    if rules.languages and UNSAID not in found:
        wanted = {language: found[language] for language in rules.languages if language in found}
        if not wanted:
            reason = f"caption in {', '.join(found)} ({key}); data.languages is {', '.join(rules.languages)}"
            raise BadSample("caption missing", reason)
        found = wanted
    return _usable(found, key, rules.max_chars)


def _find(
    key: str, members: dict[str, bytes], record: dict[str, Any], rules: CaptionRules
) -> dict[str, list[str]] | None:
    """What stands at the key, by language; None where nothing does."""
    if LANGUAGE in key:
        parts = {name: _find(key.replace(LANGUAGE, name), members, record, rules) for name in rules.languages}
        return {
            name: [text for texts in part.values() for text in texts] for name, part in parts.items() if part
        } or None
    if key.startswith("json."):
        value = record.get(key.removeprefix("json."))
        return None if value is None else _by_language(value, key)
    if key not in members:
        return None
    try:
        text = members[key].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"caption is not UTF-8: {error.reason} at byte {error.start} of the {key}"
        raise BadSample("caption not UTF-8", reason) from error
    first, _, rest = text.strip().partition("\n")
    matches = [match for line in rest.splitlines() if (match := _TRANSLATION.fullmatch(line.strip()))]
    if not matches:
        return {UNSAID: [text]}
    return {"en": [first], **{match[1]: [match[2]] for match in matches}}


def _by_language(value: Any, key: str) -> dict[str, list[str]]:
    by_language = value if isinstance(value, dict) else {UNSAID: value}
    lists = {name: texts if isinstance(texts, list) else [texts] for name, texts in by_language.items()}
    for texts in lists.values():
        for text in texts:
            if not isinstance(text, str):
                raise BadSample("caption missing", f"{key} is {type(text).__name__}, not text")
    return lists


def _usable(found: dict[str, list[str]], key: str, max_chars: int) -> dict[str, list[str]]:
    """Without what is empty or too long.

    Raises:
        BadSample: nothing is left.
    """
    stripped = {name: [text.strip() for text in texts] for name, texts in found.items()}
    usable = {name: [text for text in texts if 0 < len(text) <= max_chars] for name, texts in stripped.items()}
    usable = {name: texts for name, texts in usable.items() if texts}
    if usable:
        return usable
    longest = max((len(text) for texts in stripped.values() for text in texts), default=0)
    if longest:
        reason = f"caption of {longest} characters ({key}); data.max_caption_chars is {max_chars}"
        raise BadSample("caption too long", reason)
    raise BadSample("caption empty", f"caption is empty ({key})")
