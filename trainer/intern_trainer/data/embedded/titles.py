"""Which pictures of openclipart enter the embedded set, under which category, with which title, keywords and caption.

Everything is derived from what the artists wrote (title, keywords, file name); nothing is labelled by a model.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

# longest matching folder prefix wins; None: left out (no common subject, brands, one theme repeated a thousand times)
FOLDERS: dict[str, str | None] = {
    "animals": "animals",
    "animals/birds": "birds",
    "animals/bugs": "insects",
    "animals/fantasy": None,
    "buildings": "buildings",
    "buildings/furniture": None,
    "buttons": "buttons",
    "computer": "computers",
    "computer/buttons": "buttons",
    "computer/games": None,
    "computer/icons": None,
    "decorations": None,
    "education": "office supplies",
    "electronics": "computers",
    "food": "food",
    "food/fruit": "fruit",
    "geography": "maps",
    "geography/astronomy": None,
    "office": "office supplies",
    "office/telephone": "computers",
    "people": "people",
    "people/bodypart": None,
    "people/clothing": "clothing",
    "people/clothing/pantyhose": None,
    "plants": "plants",
    "recreation": "sports and games",
    "recreation/games/cards": None,
    "recreation/music": "music",
    "recreation/religion": None,
    "recreation/holiday": None,
    "shapes": "patterns",
    "shapes/flowchart": None,
    "shapes/jigsaw": None,
    "shapes/stars": None,
    "signs_and_symbols": "signs",
    "signs_and_symbols/flags": "flags",
    "signs_and_symbols/flags/historic": None,
    "signs_and_symbols/flags/miscellany": None,
    "signs_and_symbols/flags/semaphore": None,
    "signs_and_symbols/led": "buttons",
    "special/patterns": "patterns",
    "tools": "tools",
    "tools/weapons": None,
    "transportation": "vehicles",
    "transportation/roadsigns": "signs",
}
CATEGORIES = sorted({category for category in FOLDERS.values() if category})

# a title that names a collection says nothing of the picture: the file name then does
COLLECTION = re.compile(
    r"clipart by|various clip|theme|etiquette|icon ?set|icons$|collection|symbol_signs|svg road|homes clipart|"
    r"australian maps|sibmission|advertising|map symbols|simple arrows|^sallite|^people$|^card$|stick man|blueman|"
    r"pc connectors|^untitled|^drawing$|openclipart|clip ?art|hash\(",
    re.I,
)
# brands, mascots, software and organisations; and what does not belong into a set for everyone
REFUSED = re.compile(
    r"\b(tux|linux|debian|ubuntu|gnome|kde|gimp|inkscape|sodipodi|mozilla|firefox|windows|microsoft|xbox|nintendo|pacman|"
    r"packman|tetris|apple computer|i?mac|ipod|macintosh|sun microsystems|cisco|alcatel|hp|ibm|dell|nokia|sprint|"
    r"motorola|siemens|coca|cola|pepsi|heineken|starbucks|mcdonald\w*|ford|chevrolet|chevy|shelby|hummer|honda|toyota|"
    r"bmw|mercedes|volkswagen|vespa|ferrari|porsche|fiat|lego|disney|mickey|simpsons?|gundam|beckham|lovely baby|"
    r"cinderella|gokh?u|naruto|rubik\W?s|garfield|snoopy|batman|superman|pokemon|logos?|brand|trademark|wikipedia|"
    r"google|skype|php|python|java|perl|bsd|unicef|sex\w*|nude|naked|porn|nazi\w*|hitler|swastika|ku klux|drugs?|"
    r"marijuana|cannabis|hemp|terror\w*|bush|bin laden|organizations)\b",
    re.I,
)
USELESS_WORDS = {
    *("", "unsorted", "hash", "11", "en", "clipart", "openclipart", "clip art", "architetto francesco rollandin"),
    *("icons", "icon", "theme", "signs_and_symbols", "united_nations_member", "miscellany", "svg", "vector", "image"),
    *("picture", "sup", "bw", "appicon", "simple"),
}
KEYWORDS_IN_CAPTION = 4


@dataclass(frozen=True)
class Work:
    """One picture as its artist describes it. `path` is relative, without suffix."""

    path: str
    title: str
    keywords: list[str] = field(default_factory=list)


def read_work(path: str, svg: str) -> Work:
    """Title and keywords of the `cc:Work` record in an SVG's text."""
    found = re.search(r"<(?:cc:)?Work\b(.*?)</(?:cc:)?Work>", svg, re.S)
    people = r"<dc:(creator|rights|publisher|contributor)\b.*?</dc:\1>"
    record = re.sub(people, "", found.group(1) if found else "", flags=re.S)
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", record, re.S)
    keywords = re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", record, re.S)
    return Work(path, _text(title.group(1)) if title else "", [_text(word).lower() for word in keywords])


def is_public_domain(svg: str) -> bool:
    licence = re.search(r"license[^>]*resource=\"([^\"]*)\"", svg)
    return licence is not None and "publicdomain" in licence.group(1).lower()


def category(path: str) -> str | None:
    """The category of a picture by its folder; None where the set leaves it out."""
    folder = path
    while "/" in folder:
        folder = folder.rsplit("/", 1)[0]
        if folder in FOLDERS:
            return FOLDERS[folder]
    return None


def is_refused(work: Work) -> bool:
    return any(REFUSED.search(_words(text)) for text in (work.path, work.title, *work.keywords))


def title(work: Work) -> str | None:
    """A title of words: the artist's, or the file name's where that names a collection. None if neither has any."""
    for text in (work.title if not COLLECTION.search(work.title) else "", _from_file_name(work)):
        text = _tidy(text)
        if len(re.findall(r"[^\W\d_]{3,}", text)) and 3 <= len(text) <= 60:
            return text
    return None


def keywords(work: Work) -> list[str]:
    """The artist's keywords, without codes, names of folders and of people."""
    cleaned = [_tidy(word) for word in work.keywords if word not in USELESS_WORDS]
    good = [
        w for w in cleaned if re.fullmatch(r"[^\W\d_][\w' -]{2,24}", w) and "hash" not in w and "rollandin" not in w
    ]
    return sorted(set(good))[:12]


def caption(title_: str, words: list[str], frequency: dict[str, int]) -> str:
    """`title, keyword, ...`: keywords that the title lacks, the most common first (they say what kind it is)."""
    fresh = [word for word in words if word not in title_.lower()]
    chosen = sorted(fresh, key=lambda word: (-frequency[word], word))[:KEYWORDS_IN_CAPTION]
    return ", ".join([title_, *chosen])


def group(title_: str) -> str:
    """Titles that differ only in numbers, punctuation or case are one group, and go to one split together."""
    return " ".join(re.findall(r"[^\W\d_]{2,}", title_.lower())) or title_.lower()


def _text(xml: str) -> str:
    return html.unescape(html.unescape(re.sub(r"<[^>]+>", "", xml))).strip()


def _words(text: str) -> str:
    return re.sub(r"[_\-/.#0-9]+", " ", text)


def _tidy(text: str) -> str:
    """Underscores to spaces; authors, addresses and trailing numbers away."""
    text = re.sub(r"\(?\s*e?-?mail:?[^)]*\)?|\S+@\S+|architetto francesco rollandin|\.svg\b", " ", text, flags=re.I)
    text = re.sub(r"[_\s]+", " ", text)
    text = re.sub(r"\s*[#-]?\s*\d+\s*$|\s*-\s*$|^[\s\-,.|]+|[\s\-,.|]+$", "", text)
    return re.sub(r"([^\W\d])\d{1,2}\b", r"\1", text).strip()


def _from_file_name(work: Work) -> str:
    """Only collections name their files after the subject alone; elsewhere the name ends in the artist's, cut short."""
    name = work.path.rsplit("/", 1)[1]
    words = _words(
        re.sub(r"^(aiga|gnome|stock|mime|lemon|nps|\d+)[_-]+|_(nicu|juliane|architetto|jean)\w*.*$", "", name)
    )
    collections = r"clipart by|various|symbol_signs|svg road|etiquette|connectors|australian"
    return words if re.search(collections, work.title, re.I) else ""
