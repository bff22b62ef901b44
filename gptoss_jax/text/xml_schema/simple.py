"""Simple types: the texts of elements without children and the values of attributes.

A type is a set of regular expressions that a value, escaped as XML wants it, matches all.
"""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal, InvalidOperation
from typing import Literal
from xml.etree.ElementTree import Element

from gptoss_jax.text.errors import GrammarError
from gptoss_jax.text.xml_schema import numbers
from gptoss_jax.text.xml_schema.pattern import translate
from gptoss_jax.text.xml_schema.source import allow, children, is_a, shown, whole_number

Kind = Literal["text", "line", "words", "name", "number", "other"]

# What XML allows, without what is escaped; "]]>" is why > is too.
_PLAIN = r"!#-%'-;=?-\x{D7FF}\x{E000}-\x{FFFD}\x{10000}-\x{10FFFF}"
_ENTITY = "&(?:amp|lt|gt|quot|apos);"
_SAFE = f"[ {_PLAIN}]*"

_ZONE = r"(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])?"
_YEAR = "[1-9][0-9]{3}"
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    f"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_LENGTH = "[0-9]{1,4}"
_CLOCK = rf"T(?:{_LENGTH}H(?:{_LENGTH}M)?(?:{_LENGTH}S)?|{_LENGTH}M(?:{_LENGTH}S)?|{_LENGTH}S)"
_DAYS = f"(?:{_LENGTH}Y(?:{_LENGTH}M)?(?:{_LENGTH}D)?|{_LENGTH}M(?:{_LENGTH}D)?|{_LENGTH}D)"
_SEGMENT = r"(?:[A-Za-z0-9._~!$'()*+,;=@\/-]|%[0-9A-Fa-f]{2})*"
_FORMATS = {
    "boolean": "true|false|1|0",
    "date": _DATE + _ZONE,
    "dateTime": f"{_DATE}T{_TIME}{_ZONE}",
    "time": _TIME + _ZONE,
    "gYear": _YEAR + _ZONE,
    "gYearMonth": f"{_YEAR}-(?:0[1-9]|1[0-2]){_ZONE}",
    "duration": f"-?P(?:{_DAYS}(?:{_CLOCK})?|{_CLOCK})",
    "float": rf"{numbers.DECIMAL}(?:[eE]-?[0-9]{{1,2}})?|-?INF|NaN",
    "double": rf"{numbers.DECIMAL}(?:[eE]-?[0-9]{{1,3}})?|-?INF|NaN",
    "anyURI": rf"(?:[A-Za-z][A-Za-z0-9+.-]*:)?{_SEGMENT}(?:\?{_SEGMENT})?(?:#{_SEGMENT})?",
    "hexBinary": "(?:[0-9A-Fa-f]{2})*",
    "base64Binary": r"(?:[A-Za-z0-9+\/]{4})*(?:[A-Za-z0-9+\/]{2}[AEIMQUYcgkosw048]=)?",
}
_NAMES = {
    "NMTOKEN": "[A-Za-z0-9._:-]+",
    "Name": "[A-Za-z_:][A-Za-z0-9._:-]*",
    "NCName": "[A-Za-z_][A-Za-z0-9._-]*",
    "language": "[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*",
}
_RANGES: dict[str, tuple[int | None, int | None]] = {
    "integer": (None, None),
    "nonNegativeInteger": (0, None),
    "positiveInteger": (1, None),
    "nonPositiveInteger": (None, 0),
    "negativeInteger": (None, -1),
    **{name: (-(1 << n - 1), (1 << n - 1) - 1) for name, n in (("long", 64), ("int", 32))},
    **{name: (-(1 << n - 1), (1 << n - 1) - 1) for name, n in (("short", 16), ("byte", 8))},
    **{name: (0, (1 << n) - 1) for name, n in (("unsignedLong", 64), ("unsignedInt", 32))},
    **{name: (0, (1 << n) - 1) for name, n in (("unsignedShort", 16), ("unsignedByte", 8))},
}
_FACETS = {
    "length": ("text", "line", "words", "name"),
    "minLength": ("text", "line", "words", "name"),
    "maxLength": ("text", "line", "words", "name"),
    "minInclusive": ("number",),
    "maxInclusive": ("number",),
    "minExclusive": ("number",),
    "maxExclusive": ("number",),
    "totalDigits": ("number",),
    "fractionDigits": ("number",),
}


@dataclasses.dataclass(frozen=True)
class Simple:
    """A simple type.

    Attributes:
      kind: what facets it takes and how it is escaped: text with lines, one line, words with single
        spaces between, a name, a number, or something without either.
      forms: expressions of the value; it matches all.
      patterns: as `forms`, of values in which nothing is escaped.
      least: characters at least.
      most: characters at most, None for any number.
      values: an enumeration of fitting lengths, None for none; forms and patterns hold for it too.
    """

    kind: Kind
    forms: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    values: tuple[str, ...] | None = None

    def terminal(self, *, attribute: bool) -> str:
        """The right side of a Lark terminal.

        Args:
          attribute: it stands between double quotes, and not between tags.
        """
        parts = [*self.forms]
        if self.values is not None:
            parts.append("|".join(_literal(value) for value in self.values))
        elif self.kind in ("text", "line", "words"):
            breaks = "\\n\\t" if self.kind == "text" and not attribute else ""
            quote = "" if attribute else '"'
            inner = f"(?:[{breaks}{quote}{_PLAIN}]|{_ENTITY})"
            unit = f"(?:[ {breaks}{quote}{_PLAIN}]|{_ENTITY})"
            most = "" if self.most is None else self.most
            parts.append(f"{unit}{{{self.least},{most}}}")
            if self.kind == "words":
                parts.append(f"(?:{inner}+(?: {inner}+)*)?")
        elif self.least or self.most is not None:
            parts.append(f".{{{self.least},{'' if self.most is None else self.most}}}")
        if self.patterns:
            parts += [*self.patterns, _SAFE]
        return " & ".join(f"/{part}/" for part in parts)


def escaped(value: str) -> str:
    """A text as it stands between tags or double quotes."""
    for character, name in {"&": "amp", "<": "lt", ">": "gt", '"': "quot"}.items():
        value = value.replace(character, f"&{name};")
    return value


def builtin(name: str) -> Simple | None:
    """A type of XML Schema's own by its name without prefix; None: it is not supported."""
    if name in _RANGES:
        low, high = _RANGES[name]
        bounds = [] if low is None else [numbers.at_least(Decimal(low))]
        bounds += [] if high is None else [numbers.at_most(Decimal(high))]
        return Simple("number", (numbers.INTEGER, *bounds))
    if name in _NAMES:
        return Simple("name", (_NAMES[name],))
    if name in _FORMATS:
        return Simple("other", (_FORMATS[name],))
    texts: dict[str, Kind] = {"string": "text", "normalizedString": "line", "token": "words"}
    if name in texts:
        return Simple(texts[name])
    return Simple("number", (numbers.DECIMAL,)) if name == "decimal" else None


def restrict(base: Simple, node: Element) -> Simple:
    """A type narrowed by the facets of an `xs:restriction`.

    Raises:
      GrammarError: a facet is not supported, or nothing is left.
    """
    facets = [child for child in children(node) if not is_a(child, "simpleType", "attribute")]
    patterns, values = [], []
    for facet in facets:
        allow(facet, ("value", "fixed"), ())
        if is_a(facet, "pattern"):
            patterns.append(translate(facet.get("value", "")))
        elif is_a(facet, "enumeration"):
            values.append(facet.get("value", ""))
        else:
            base = _narrowed(base, facet)
    if patterns:
        either = "|".join(f"(?:{pattern})" for pattern in patterns)
        base = dataclasses.replace(base, patterns=(*base.patterns, either))
    if values:
        base = dataclasses.replace(base, values=_enumerated(base, values))
    if base.most is not None and base.least > base.most:
        raise GrammarError(f"{shown(node)}: no text has {base.least} to {base.most} characters")
    return base if base.values is None else dataclasses.replace(base, values=_fitting(base, node))


def fixed(kind: Simple, value: str) -> Simple:
    """A type of one value, which must be of it."""
    return dataclasses.replace(kind, values=_enumerated(kind, [value]))


def _narrowed(base: Simple, facet: Element) -> Simple:
    name = facet.tag.partition("}")[2]
    if name == "whiteSpace":
        return _respaced(base, facet)
    if base.kind not in _FACETS.get(name, ()):
        raise GrammarError(f"the facet {shown(facet)} is not supported for its type")
    if "ength" in name:
        count = whole_number(facet, "value", "")
        least = max(base.least, count) if name in ("length", "minLength") else base.least
        most = base.most
        if name in ("length", "maxLength"):
            most = count if most is None else min(most, count)
        return dataclasses.replace(base, least=least, most=most)
    if name == "totalDigits":
        form = rf"-?(?:[0-9]\.?){{1,{whole_number(facet, 'value', '')}}}"
    elif name == "fractionDigits":
        count = whole_number(facet, "value", "")
        form = rf"-?[0-9]+(?:\.[0-9]{{1,{count}}})?" if count else "-?[0-9]+"
    else:
        bounded = numbers.at_least if name.startswith("min") else numbers.at_most
        form = bounded(_number(facet), inclusive=name.endswith("Inclusive"))
    return dataclasses.replace(base, forms=(*base.forms, form))


def _respaced(base: Simple, facet: Element) -> Simple:
    kinds: dict[str, Kind] = {"preserve": "text", "replace": "line", "collapse": "words"}
    kind = kinds.get(facet.get("value", ""))
    if kind is None or base.kind not in kinds.values():
        return base
    return dataclasses.replace(base, kind=kind)


def _number(facet: Element) -> Decimal:
    text = facet.get("value", "").strip()
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or len(text) > 100 or abs(number.adjusted()) > 100:
        raise GrammarError(f"{shown(facet)}: {text[:20]!r} is no number of at most 100 digits")
    return number


def _enumerated(base: Simple, values: list[str]) -> tuple[str, ...]:
    """The values as they are written, which also the type above allows."""
    if base.kind not in ("text", "line"):
        values = [" ".join(value.split()) for value in values]
    if base.kind == "number":
        values = [_plain(value) for value in values]
    return tuple(value for value in values if base.values is None or value in base.values)


def _fitting(base: Simple, node: Element) -> tuple[str, ...]:
    assert base.values is not None
    most = float("inf") if base.most is None else base.most
    values = tuple(value for value in base.values if base.least <= len(value) <= most)
    if not values:
        raise GrammarError(f"{shown(node)}: no value of the xs:enumeration is allowed")
    return values


def _plain(number: str) -> str:
    """A number as a type's forms write it: "+05.0" is "5"; what is none stays."""
    try:
        value = Decimal(number)
    except InvalidOperation:
        return number
    if not value.is_finite() or abs(value.adjusted()) > 100:
        return number
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _literal(value: str) -> str:
    text = re.sub(r"([\\.+*?()|\[\]{}^$/#&~-])", r"\\\1", escaped(value))
    return text.replace("\n", "&#10;").replace("\t", "&#9;")
