"""Elements and complex types as rules.

Each element declaration, complex type and value is a rule or terminal of its own, so that types may
contain themselves. Between tags there may be a line break and an indentation, and no more: a model
that is free to write blanks may never come to an end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from xml.etree.ElementTree import Element

from gptoss_jax.text.errors import GrammarError
from gptoss_jax.text.xml_schema import simple
from gptoss_jax.text.xml_schema.simple import Simple
from gptoss_jax.text.xml_schema.source import XS, allow, children, is_a, read, shown, whole_number

_BEGIN = r"""
start: HEAD? root
HEAD: /<\?xml version="1\.0"( encoding="UTF-8")?\?>\n?/
WS: /\n[ \t]{0,32}/
SHUT: / ?\/>/
"""
_GROUPS = ("sequence", "choice", "all")
_MOST_PASSES = 300
_OCCURS = ("minOccurs", "maxOccurs")
_SCHEMA = ("targetNamespace", "elementFormDefault", "attributeFormDefault", "version")


def grammar(text: str) -> str:
    """The Lark grammar of the documents that follow a schema.

    The root is a global element that no other refers to, or any if all are referred to.

    Raises:
      GrammarError: the schema is not well-formed, not in the subset, or no document is finite.
    """
    return _Compiler(text).compile()


class _Compiler:
    def __init__(self, text: str):
        self._schema, self._prefixes = read(text)
        allow(self._schema, _SCHEMA, ("element", "complexType", "simpleType"))
        if self._schema.get("attributeFormDefault", "unqualified") != "unqualified":
            raise GrammarError("xs:schema: attributeFormDefault is not supported")
        self._namespace = self._schema.get("targetNamespace", "")
        qualified = self._schema.get("elementFormDefault") == "qualified"
        # Local elements have no namespace then, so the global ones need a prefix.
        self._prefix = "n:" if self._namespace and not qualified else ""
        self._globals = {(c.tag, c.get("name", "")): c for c in children(self._schema)}
        _check_once(self._schema, "element", "complexType", "simpleType")
        self._rules: list[str] = []
        self._named: dict[object, str] = {}
        # Bodies still to be written: a chain of types is as long as the schema.
        self._pending: list[Callable[[], None]] = []

    def compile(self) -> str:
        roots = self._roots()
        self._check_finite(roots)
        declared = ""
        if self._namespace:
            prefix = ":" + self._prefix[:-1] if self._prefix else ""
            declared = f' xmlns{prefix}="{simple.escaped(self._namespace)}"'
        bodies = [self._element_body(root, declared) for root in roots]
        while self._pending:
            self._pending.pop()()
        return "\n".join([_BEGIN, f"root: {' | '.join(bodies)}", *self._rules])

    def _roots(self) -> list[Element]:
        elements = [node for node in children(self._schema) if is_a(node, "element")]
        if not elements:
            raise GrammarError("xs:schema: it declares no element")
        used = {
            self._local(node.get("ref", ""), node) for node in self._schema.iter(XS + "element")
        }
        return [e for e in elements if e.get("name") not in used] or elements

    # --- Elements --------------------------------------------------------------------------------

    def _element(self, node: Element) -> str:
        """The rule of a declared element."""
        return self._rule(node, "e", lambda: self._element_body(node, ""))

    def _element_body(self, node: Element, declared: str) -> str:
        is_global = node is self._globals.get((node.tag, node.get("name", "")))
        allowed = ("name", "type", "default", "fixed", "nillable", *(() if is_global else _OCCURS))
        allow(node, allowed, ("complexType", "simpleType"))
        name = (self._prefix if is_global else "") + self._name(node)
        begin, end = _quoted(f"<{name}{declared}"), _quoted(f"</{name}>")
        kind = self._type(node)
        if node.get("fixed") is not None:
            kind = self._fixed(node, kind)
        if isinstance(kind, Simple):
            return f'{begin} ">" {self._terminal(kind, attribute=False)} {end}'
        attributes, content = self._complex(kind)
        body = f'">" {content} {end}'
        return f"{begin} {attributes} {f'(SHUT | {body})' if _may_be_empty(kind) else body}"

    def _fixed(self, node: Element, kind: Simple | Element) -> Simple:
        if isinstance(kind, Element):
            raise GrammarError(f"{shown(node)}: fixed is not supported for a complex type")
        return simple.fixed(kind, node.get("fixed", ""))

    def _type(self, node: Element) -> Simple | Element:
        """Of an element or attribute: a simple type, or the `xs:complexType`."""
        own = list(children(node))
        if node.get("type") is not None:
            return self._type_named(node.get("type", ""), node)
        if not own:
            raise GrammarError(f"{shown(node)}: it has no type; anything could be in it")
        return own[0] if is_a(own[0], "complexType") else self._simple(own[0], 0)

    def _type_named(self, name: str, node: Element, depth: int = 0) -> Simple | Element:
        local = self._local(name, node)
        if self._namespace_of(name) == XS[1:-1]:
            found = simple.builtin(local)
            if found is None:
                raise GrammarError(f"{shown(node)}: the type xs:{local} is not supported")
            return found
        complex_type = self._globals.get((XS + "complexType", local))
        if complex_type is not None:
            return complex_type
        declared = self._globals.get((XS + "simpleType", local))
        if declared is None:
            raise GrammarError(f"{shown(node)}: there is no type {name!r}")
        return self._simple(declared, depth)

    def _simple(self, node: Element, depth: int) -> Simple:
        """Of an `xs:simpleType`."""
        allow(node, ("name",), ("restriction",))
        parts = list(children(node))
        if len(parts) != 1:
            raise GrammarError(f"{shown(node)}: give one xs:restriction")
        return self._restricted(parts[0], depth)

    def _restricted(self, node: Element, depth: int = 0) -> Simple:
        if depth > 50:
            raise GrammarError("a simple type is derived from itself, or over more than 50 others")
        own = [child for child in children(node) if is_a(child, "simpleType")]
        if own:
            base = self._simple(own[0], depth + 1)
        else:
            base = self._type_named(node.get("base", ""), node, depth + 1)
        if isinstance(base, Element):
            raise GrammarError(f"xs:restriction of {shown(base)} is not supported")
        return simple.restrict(base, node)

    # --- Complex types ---------------------------------------------------------------------------

    def _complex(self, node: Element) -> tuple[str, str]:
        """(attributes, content or "" for none) of an `xs:complexType`, as rules."""
        allow(node, ("name", "mixed"), (*_GROUPS, "attribute", "simpleContent"))
        if node.get("mixed", "false") not in ("false", "0"):
            raise GrammarError(f"{shown(node)}: mixed content is not supported")
        parts = list(children(node))
        simple_content = parts and is_a(parts[0], "simpleContent")
        holder = self._extension(parts[0]) if simple_content else node
        attributes = self._rule((holder, "a"), "a", lambda: self._attributes(holder))
        if simple_content:
            base = self._type_named(holder.get("base", ""), holder)
            if isinstance(base, Element):
                raise GrammarError(f"{shown(node)}: extension of {shown(base)} is not supported")
            return attributes, self._terminal(base, attribute=False)
        groups = [part for part in parts if is_a(part, *_GROUPS)]
        if groups[1:]:
            raise GrammarError(f"{shown(node)}: {shown(groups[1])} after {shown(groups[0])}")
        if not groups or _is_empty(groups[0]):
            return attributes, ""
        return attributes, self._rule(node, "c", lambda: f"WS? {self._particle(groups[0])}")

    def _extension(self, node: Element) -> Element:
        allow(node, (), ("extension",))
        for extension in children(node):
            allow(extension, ("base",), ("attribute",))
            return extension
        raise GrammarError("xs:simpleContent: give an xs:extension")

    def _attributes(self, node: Element) -> str:
        _check_once(node, "attribute")
        parts = [""]
        for attribute in children(node):
            if not is_a(attribute, "attribute"):
                continue
            allow(attribute, ("name", "type", "use", "default", "fixed"), ("simpleType",))
            use = attribute.get("use", "optional")
            if use == "prohibited":
                continue
            kind = self._type(attribute)
            if attribute.get("fixed") is not None:
                kind = self._fixed(attribute, kind)
            if isinstance(kind, Element):
                raise GrammarError(f"{shown(attribute)}: its type is no simple one")
            begin = _quoted(f' {self._name(attribute)}="')
            value = f"{begin} {self._terminal(kind, attribute=True)} {_quoted(chr(34))}"
            parts.append(value if use == "required" else f"({value})?")
        return " ".join(parts) if parts[1:] else '""'

    def _particle(self, node: Element) -> str:
        """An element or group as often as it may occur, each element with the blanks after it."""
        low = whole_number(node, "minOccurs", "1")
        unbounded = node.get("maxOccurs") == "unbounded"
        high = "" if unbounded else whole_number(node, "maxOccurs", "1")
        if high != "" and low > high:
            raise GrammarError(f"{shown(node)}: minOccurs is above maxOccurs")
        if high == 0:
            return '""'
        once = f"({self._element(self._resolved(node))} WS?)" if is_a(node, "element") else None
        once = once or self._group(node)
        return once if low == high == 1 else f"{once}{{{low},{high}}}"

    def _group(self, node: Element) -> str:
        allow(node, _OCCURS, ("element",) if is_a(node, "all") else ("element", *_GROUPS[:2]))
        parts = [self._particle(child) for child in children(node)]
        if not parts:
            if is_a(node, "choice"):
                raise GrammarError("xs:choice: there is nothing to choose from")
            return '("")'
        return f"({(' | ' if is_a(node, 'choice') else ' ').join(parts)})"

    def _resolved(self, node: Element) -> Element:
        """The declaration that an element refers to, or is."""
        if node.get("ref") is None:
            return node
        allow(node, ("ref", *_OCCURS), ())
        found = self._globals.get((node.tag, self._local(node.get("ref", ""), node)))
        if found is None:
            raise GrammarError(f"{shown(node)}: there is no such element")
        return found

    def _check_finite(self, roots: list[Element]) -> None:
        """Refuses an element that has itself in it whatever is chosen."""
        nodes = [n for n in self._schema.iter() if is_a(n, "element", "complexType", *_GROUPS)]
        finite: set[Element] = set()
        for _ in range(_MOST_PASSES):
            for node in nodes:
                if self._ends(node, finite):
                    finite.add(node)
            # Types are declared after what has them, or before: go both ways.
            left = [node for node in reversed(nodes) if node not in finite]
            if len(left) == len(nodes):
                break
            nodes = left
        endless = next((root for root in roots if root not in finite), None)
        if endless is not None:
            raise GrammarError(f"{shown(endless)} always contains itself; no document is finite")

    def _ends(self, node: Element, finite: set[Element]) -> bool:
        """Whether something finite can stand for a node, where it can for others."""
        if is_a(node, "element"):
            declared = self._resolved(node)
            kind = declared if declared is not node else self._type(node)
            return not isinstance(kind, Element) or kind in finite
        parts = [child for child in children(node) if is_a(child, "element", *_GROUPS)]
        ends = [part.get("minOccurs") == "0" or part in finite for part in parts]
        return any(ends) if is_a(node, "choice") else all(ends)

    # --- Names -----------------------------------------------------------------------------------

    def _rule(self, key: object, letter: str, body: Callable[[], str]) -> str:
        """The name of a rule whose body is written once, later."""
        if key not in self._named:
            name = self._named[key] = f"{letter}{len(self._named)}"
            self._pending.append(lambda: self._rules.append(f"{name}: {body()}"))
        return self._named[key]

    def _terminal(self, kind: Simple, *, attribute: bool) -> str:
        key = (kind, attribute)
        if key not in self._named:
            name = self._named[key] = f"T{len(self._named)}"
            self._rules.append(f"{name}: {kind.terminal(attribute=attribute)}")
        return self._named[key]

    def _name(self, node: Element) -> str:
        name = node.get("name", "")
        begins = name[:1].isalpha() or name[:1] == "_"
        if not begins or not all(c.isalnum() or c in "_-." for c in name):
            raise GrammarError(
                f"{shown(node)}: it needs a name of letters, digits and _ - . that begins with a "
                "letter or _"
            )
        return name

    def _namespace_of(self, name: str) -> str:
        return self._prefixes.get(name.rpartition(":")[0], "")

    def _local(self, name: str, node: Element) -> str:
        """A qualified name without its prefix, which must stand for a namespace that is here."""
        if name and self._namespace_of(name) not in (XS[1:-1], self._namespace):
            raise GrammarError(f"{shown(node)}: {name!r} is of another schema")
        return name.rpartition(":")[2]


def _may_be_empty(node: Element) -> bool:
    """Whether a complex type or group has no child that must be there."""
    if is_a(node, "element", "simpleContent"):
        return False
    parts = [child for child in children(node) if not is_a(child, "attribute")]
    empty = [part.get("minOccurs") == "0" or _may_be_empty(part) for part in parts]
    return any(empty) if is_a(node, "choice") else all(empty)


def _is_empty(node: Element) -> bool:
    """Whether nothing can ever be in a group, not even blanks."""
    if node.get("maxOccurs") == "0":
        return True
    return is_a(node, *_GROUPS) and all(map(_is_empty, children(node)))


def _check_once(node: Element, *kinds: str) -> None:
    """Refuses two declarations of one name."""
    seen = set()
    for child in children(node):
        if is_a(child, *kinds):
            if (child.tag, child.get("name")) in seen:
                raise GrammarError(f"{shown(child)}: it is declared twice")
            seen.add((child.tag, child.get("name")))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
