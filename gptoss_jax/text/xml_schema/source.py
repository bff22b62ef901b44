"""XML Schema files as trees: read without entities, every part known or refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from gptoss_jax.text.errors import GrammarError

XS = "{http://www.w3.org/2001/XMLSchema}"
_MOST_NESTED = 100
_MOST_CHARACTERS = 1_000_000


def read(text: str) -> tuple[Element, dict[str, str]]:
    """The root `xs:schema`, and the namespace of each prefix ("" for the default one).

    Raises:
      GrammarError: too long, no XML, a DOCTYPE (whose entities could grow without bound), nested
        too deep, or something else than a schema.
    """
    if len(text) > _MOST_CHARACTERS:
        raise GrammarError(
            f"it has {len(text)} characters; at most {_MOST_CHARACTERS} are compiled"
        )
    builder = _Builder()
    parser = ElementTree.XMLParser(target=builder)
    try:
        parser.feed(text)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise GrammarError(f"not well-formed XML: {error}") from None
    if root.tag != f"{XS}schema":
        raise GrammarError(f"the root is {shown(root)}; give an XML Schema, an xs:schema")
    return root, builder.prefixes


class _Builder(ElementTree.TreeBuilder):
    def __init__(self):
        super().__init__()
        self.prefixes: dict[str, str] = {}
        self._depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise GrammarError("it has a DOCTYPE; leave it out")

    def start_ns(self, prefix: str, uri: str) -> None:
        if self.prefixes.setdefault(prefix or "", uri) != uri:
            raise GrammarError(f"the prefix {prefix!r} stands for two namespaces; name one anew")

    def start(self, tag, attrs):
        self._depth += 1
        if self._depth > _MOST_NESTED:
            raise GrammarError(f"it is nested deeper than {_MOST_NESTED} elements")
        return super().start(tag, attrs)

    def end(self, tag):
        self._depth -= 1
        return super().end(tag)


def shown(node: Element) -> str:
    """A node as people write it, with its name if it has one."""
    tag = node.tag.replace(XS, "xs:")
    name = node.get("name") or node.get("ref")
    return f'{tag} "{name}"' if name else tag


def children(node: Element) -> Iterator[Element]:
    """The parts of a node, annotations left out."""
    return (child for child in node if child.tag != f"{XS}annotation")


def is_a(node: Element, *kinds: str) -> bool:
    """Whether a node is of one of these kinds, named without the prefix."""
    return node.tag in {XS + kind for kind in kinds}


def allow(node: Element, attributes: Iterable[str], parts: Iterable[str]) -> None:
    """Refuses what the subset does not have.

    Args:
      node: of the schema.
      attributes: it may have; `id` always.
      parts: kinds of its children, annotations always.

    Raises:
      GrammarError: it has another.
    """
    unknown = [name for name in node.keys() if name not in {*attributes, "id"}]  # noqa: SIM118 - an Element is no dict
    if unknown:
        raise GrammarError(f"{shown(node)}: the attribute {unknown[0]} is not supported")
    known = {XS + part for part in parts}
    for child in children(node):
        if child.tag not in known:
            raise GrammarError(f"{shown(node)}: {shown(child)} is not supported here")


def whole_number(node: Element, attribute: str, default: str) -> int:
    """An attribute that counts.

    Raises:
      GrammarError: it is no whole number.
    """
    text = node.get(attribute, default).strip()
    # Python refuses to read numbers of thousands of digits; nobody means them.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise GrammarError(f"{shown(node)}: {attribute}={text[:20]!r} is no count")
    return int(text)
