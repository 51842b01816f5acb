"""Codes of languages in one form, so that two of them which mean the same language are equal."""

import re
from functools import lru_cache

_CODE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")

# Of the `languageAlias` elements of CLDR's supplementalMetadata.xml: codes that were withdrawn, and for
# languages of profiles those of three letters, also of what is part of a macrolanguage.
_PREFERRED = {
    "in": "id", "iw": "he", "ji": "yi", "jw": "jv", "mo": "ro", "tl": "fil",
    "baq": "eu", "ben": "bn", "cat": "ca", "chi": "zh", "cmn": "zh", "deu": "de", "eng": "en", "eus": "eu",
    "fra": "fr", "fre": "fr", "ger": "de", "glg": "gl", "guj": "gu", "heb": "he", "hin": "hi", "ind": "id",
    "ita": "it", "jav": "jv", "jpn": "ja", "kan": "kn", "mal": "ml", "mar": "mr", "may": "ms", "msa": "ms",
    "por": "pt", "spa": "es", "sun": "su", "tam": "ta", "tel": "te", "tgl": "fil", "tha": "th", "tur": "tr",
    "urd": "ur", "vie": "vi", "yid": "yi", "zho": "zh", "zsm": "ms",
}  # fmt: skip


def is_code(text: str) -> bool:
    """Whether `text` has the form of a BCP 47 code of a language, in any case."""
    return _CODE.fullmatch(text) is not None


@lru_cache(maxsize=1 << 16)
def canonical(code: str) -> str:
    """A BCP 47 code with the language that CLDR prefers, in the case of RFC 5646: "tl" is "fil", "pt-br" is
    "pt-BR", "zh-hant" is "zh-Hant"."""
    language, *subtags = code.lower().split("-")
    form = {2: str.upper, 4: str.capitalize}
    return "-".join(
        [_PREFERRED.get(language, language), *(form.get(len(tag), str.lower)(tag) for tag in subtags)]
    )


def base(code: str) -> str:
    """The language of a code alone: dialects and scripts count as their language ("pt-BR" is "pt")."""
    return canonical(code).split("-")[0]
