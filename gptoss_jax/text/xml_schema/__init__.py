"""XML Schema, a subset of it, as grammars in llguidance's Lark syntax.

Known: `xs:element` (type, ref, a type of its own), `xs:sequence`, `xs:choice`, `xs:all` (in the
schema's order), occurrence, attributes, named types and recursion through them, simple content, and
the simple types of `simple.py` with enumeration, pattern, length, bounds and digits. The rest is
refused by its name.
"""

from gptoss_jax.text.xml_schema.grammar import grammar

__all__ = ["grammar"]
