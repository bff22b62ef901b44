"""Documents of random walks through the masks, read by a validator nobody here wrote."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from walk import first_refused, random_answer

import gptoss_jax
from gptoss_jax.text import constraints, load_tokenizer
from gptoss_jax.text.constraints import Constraint, GrammarError
from gptoss_jax.text.xml_schema import numbers

pytestmark = pytest.mark.fast

ORDER = (Path(__file__).parent / "order.xsd").read_text()
_TYPES = re.findall(
    r"\w+",
    """string normalizedString token boolean decimal float double date dateTime time gYear
    gYearMonth duration anyURI hexBinary base64Binary NMTOKEN Name NCName language integer
    nonNegativeInteger positiveInteger nonPositiveInteger negativeInteger long int short byte
    unsignedLong unsignedInt unsignedShort unsignedByte""",
)
_LOCAL = """
<xs:element name="n"><xs:complexType><xs:choice maxOccurs="3">
  <xs:element name="a" type="t:Leaf"/><xs:element ref="t:n"/>
</xs:choice></xs:complexType></xs:element>
<xs:element name="top"><xs:complexType><xs:sequence>
  <xs:element ref="t:n" minOccurs="0"/>
  <xs:sequence minOccurs="0" maxOccurs="2">
    <xs:element name="x" fixed="1" type="xs:int"/>
  </xs:sequence>
</xs:sequence></xs:complexType></xs:element>
<xs:complexType name="Leaf"><xs:attribute name="q" type="t:Mark"/></xs:complexType>
<xs:simpleType name="Mark"><xs:restriction base="t:Letters">
  <xs:enumeration value="a&amp;&lt;&quot;b"/>
</xs:restriction></xs:simpleType>
<xs:simpleType name="Letters"><xs:restriction base="xs:string"/></xs:simpleType>
"""
_UNQUALIFIED = 'targetNamespace="urn:t" xmlns:t="urn:t"'


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(gptoss_jax.__file__).parent / "nano")


def schema(body: str, attributes: str = "") -> str:
    return f'<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" {attributes}>{body}</xs:schema>'


def of_type(base: str, facets: str = "") -> str:
    """One element and one attribute of a simple type."""
    return schema(
        f"""<xs:simpleType name="v"><xs:restriction base="xs:{base}">{facets}</xs:restriction>
        </xs:simpleType><xs:element name="r"><xs:complexType><xs:sequence>
        <xs:element name="e" type="v" maxOccurs="3"/></xs:sequence>
        <xs:attribute name="a" type="v"/></xs:complexType></xs:element>"""
    )


def check_walks(tokenizer, text: str, count: int) -> list[str]:
    """Documents of walks, each valid; at least half of them end."""
    xmlschema = pytest.importorskip("xmlschema", reason="needs the oracle extra")
    validator = xmlschema.XMLSchema(text)
    answer = constraints.xml(text)
    found = [random_answer(tokenizer, answer, seed, most=800) for seed in range(count)]
    ended = [document for document in found if document is not None]
    for document in ended:
        validator.validate(document)
    assert len(ended) >= count / 2
    return ended


@pytest.mark.parametrize("base", _TYPES)
def test_walks_through_each_type_are_valid(tokenizer, base):
    check_walks(tokenizer, of_type(base), 8)


@pytest.mark.parametrize(
    ("base", "facets"),
    [
        ("string", '<xs:minLength value="2"/><xs:maxLength value="5"/>'),
        ("token", '<xs:length value="6"/>'),
        ("string", r'<xs:pattern value="[A-Z]{2}\d+(-[^&amp;x]{1,3}[b-y-[d-w]])?/\w"/>'),
        ("string", '<xs:pattern value="[^&lt;]*"/><xs:length value="4"/>'),
        ("NMTOKEN", r'<xs:pattern value="\i\c+"/><xs:pattern value="[\d:]"/>'),
        ("string", r'<xs:pattern value="[^\d]{1,3}|[^\w ]{2}|[^\s]"/>'),
        ("string", r'<xs:pattern value="[\S-[\d]]{1,4}|[\p{L}-[\w]]?|[\w-[^a-f]]{2}"/>'),
        ("decimal", '<xs:minInclusive value="-12.5"/><xs:maxExclusive value="3.25"/>'),
        ("decimal", '<xs:totalDigits value="5"/><xs:fractionDigits value="2"/>'),
        ("int", '<xs:minInclusive value="97"/><xs:maxInclusive value="1203"/>'),
        ("string", '<xs:enumeration value="a&amp;b &lt;&quot;"/><xs:enumeration value="x/y.*"/>'),
        ("string", '<xs:whiteSpace value="collapse"/><xs:minLength value="1"/>'),
    ],
)
def test_walks_through_facets_are_valid(tokenizer, base, facets):
    check_walks(tokenizer, of_type(base, facets), 20)


def _enumeration(*values: str) -> str:
    return "".join(f'<xs:enumeration value="{value}"/>' for value in values)


@pytest.mark.parametrize(
    ("base", "above", "below", "left"),
    [
        ("string", _enumeration("ab", "abc", "b"), '<xs:minLength value="2"/>', {"ab", "abc"}),
        ("string", _enumeration("ab", "cd"), '<xs:pattern value="a."/>', {"ab"}),
        ("string", '<xs:pattern value="a."/>', _enumeration("ab", "ac"), {"ab", "ac"}),
        ("int", '<xs:maxInclusive value="7"/>', _enumeration("7", "+5"), {"7", "5"}),
        ("decimal", _enumeration("1.50", "2.5"), '<xs:maxExclusive value="2.5"/>', {"1.5"}),
        ("token", '<xs:maxLength value="3"/>', _enumeration(" a  b "), {"a b"}),
    ],
)
def test_an_enumeration_keeps_to_the_facets_around_it(tokenizer, base, above, below, left):
    text = schema(
        f"""<xs:simpleType name="w"><xs:restriction base="xs:{base}">{above}</xs:restriction>
        </xs:simpleType><xs:simpleType name="v"><xs:restriction base="w">{below}</xs:restriction>
        </xs:simpleType><xs:element name="r" type="v"/>"""
    )
    found = check_walks(tokenizer, text, 20)
    assert {re.sub("<[^>]*>", "", document).strip() for document in found} == left


def test_a_pattern_beside_an_enumeration_holds_for_it(tokenizer):
    """A validator refuses to read the schema, of whose values one cannot be."""
    text = of_type("string", '<xs:pattern value="a."/>' + _enumeration("ab", "cd"))
    found = {random_answer(tokenizer, constraints.xml(text), seed, most=800) for seed in range(9)}
    assert any(document and "ab" in document for document in found)
    assert not any(document and "cd" in document for document in found)


def test_walks_through_an_order_are_valid(tokenizer):
    found = "".join(check_walks(tokenizer, ORDER, 30))
    assert all(f"<{name}" in found for name in ("billTo", "prepaid", "comment", "item", "part"))


def test_walks_with_unqualified_elements_are_valid(tokenizer):
    found = "".join(check_walks(tokenizer, schema(_LOCAL, _UNQUALIFIED), 30))
    assert '<n:top xmlns:n="urn:t"' in found and "<a q=" in found and "<x>1</x>" in found


_ADDRESS = "<shipTo>{0}<name>Kim &amp; Co</name>{0}<country>DE</country>{0}</shipTo>"
_ITEM = (
    '<item sku="123-AB" gift="true">{0}<quantity>7</quantity>{0}'
    '<price currency="EUR">0.50</price>{0}<part kind="part">{0}<part/>{0}</part>{0}</item>'
)
_WHOLE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<order xmlns="http://example.org/order" '
    'date="2024-02-29">{0}' + _ADDRESS + "{0}<prepaid>false</prepaid>{0}"
    '<comment>a &lt; "b" — ç</comment>{0}' + _ITEM + "{0}" + _ITEM + "{0}</order>"
)


@pytest.mark.parametrize(
    "pattern", [r"[^\d]", r"[^\w]", r"[\S-[\d]]", r"[\p{L}-[\w]]", r"[\S-[\d-[5]]]"]
)
def test_what_a_pattern_takes_away_is_away_in_all_scripts(tokenizer, pattern):
    constraint = Constraint(
        tokenizer, constraints.xml(of_type("string", f'<xs:pattern value="{pattern}"/>')), raw=True
    )
    for wrong in ("\u0663", "\u00e9" if "w" in pattern else "7"):
        assert first_refused(tokenizer, constraint, f"<r><e>{wrong}</e></r>") is not None


def test_a_type_keeps_the_lengths_of_the_one_it_is_of(tokenizer):
    text = schema(
        """<xs:element name="r" type="v"/>
        <xs:simpleType name="v"><xs:restriction base="u"><xs:maxLength value="9"/></xs:restriction>
        </xs:simpleType><xs:simpleType name="u"><xs:restriction base="xs:string">
        <xs:length value="5"/></xs:restriction></xs:simpleType>"""
    )
    constraint = Constraint(tokenizer, constraints.xml(text), raw=True)
    assert first_refused(tokenizer, constraint, "<r>abcde</r>") is None
    assert first_refused(tokenizer, constraint, "<r>abcdefg</r>") is not None


@pytest.mark.parametrize("nothing", ["<xs:sequence/>", '<xs:choice minOccurs="0" maxOccurs="0"/>'])
def test_nothing_is_not_a_line_break(tokenizer, nothing):
    text = schema(_R.format("", f"<xs:complexType>{nothing}</xs:complexType>"))
    constraint = Constraint(tokenizer, constraints.xml(text), raw=True)
    assert first_refused(tokenizer, constraint, "<r></r>") is None
    assert first_refused(tokenizer, constraint, "<r>\n</r>") is not None


@pytest.mark.parametrize("between", ["", "\n", "\n\t\t"])
def test_valid_documents_may_be_written(tokenizer, between):
    constraint = Constraint(tokenizer, constraints.xml(ORDER), raw=True)
    document = _WHOLE.format(between)
    assert first_refused(tokenizer, constraint, document + "<|return|>") is None


@pytest.mark.parametrize(
    ("valid", "wrong"),
    [
        ("2024-02-29", "2023-02-29"),
        ("<country>DE", "<country>FR"),
        ("Kim &amp; Co", "Kim & Co"),
        ("123-AB", "123-ab"),
        ("<quantity>7", "<quantity>100"),
        ("0.50", "0.505"),
        ("0.50", "-1"),
        ('currency="EUR"', 'currency="EURO"'),
        ("<prepaid>false</prepaid>", "<prepaid>false</prepaid><prepaid>true</prepaid>"),
        (' date="2024-02-29"', ""),
        ("\n</order>", "</order"),
        ("\n<comment>", "\n\n<comment>"),
    ],
)
def test_what_is_not_valid_may_not(tokenizer, valid, wrong):
    document = _WHOLE.format("\n")
    assert valid in document
    constraint = Constraint(tokenizer, constraints.xml(ORDER), raw=True)
    document = document.replace(valid, wrong, 1)
    assert first_refused(tokenizer, constraint, document + "<|return|>") is not None


_DECIMALS = st.decimals(-1100, 1100, places=3).map(lambda d: d.normalize())


@given(_DECIMALS, _DECIMALS, st.booleans())
def test_bounds_are_those_of_decimals(bound, value, inclusive):
    for number in (value, bound, -bound):
        low = number >= bound if inclusive else number > bound
        high = number <= bound if inclusive else number < bound
        written = f"{number:f}"
        assert bool(re.fullmatch(numbers.at_least(bound, inclusive=inclusive), written)) == low
        assert bool(re.fullmatch(numbers.at_most(bound, inclusive=inclusive), written)) == high
        longer = written + ("0" if "." in written else ".0")
        assert bool(re.fullmatch(numbers.at_least(bound, inclusive=inclusive), longer)) == low
        assert bool(re.fullmatch(numbers.at_most(bound, inclusive=inclusive), longer)) == high
    assert not re.fullmatch(numbers.DECIMAL, f"0{abs(value.to_integral_value()) + 1}")
    assert re.fullmatch(numbers.at_least(Decimal(0)), "-0")


_EMPTY = "<xs:complexType/>"
_R = '<xs:element name="r"{}>{}</xs:element>'
_ENDLESS = _R.format(' type="T"', "") + (
    '<xs:complexType name="T"><xs:choice><xs:element name="x" type="T"/><xs:sequence>'
    '<xs:element name="y" type="T"/></xs:sequence></xs:choice></xs:complexType>'
)
_DEEP = "<xs:sequence>" * 200 + "</xs:sequence>" * 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a", "not well-formed XML"),
        ("<a/>", "the root is a; give an XML Schema"),
        (f'<!DOCTYPE a [<!ENTITY b "c">]>{schema("")}', "DOCTYPE"),
        (schema(""), "declares no element"),
        (schema('<xs:import namespace="x"/>'), "xs:import is not supported"),
        (schema(_R.format("", "")), 'xs:element "r": it has no type'),
        (schema(_R.format(' type="xs:ID"', "")), "the type xs:ID is not supported"),
        (schema(_R.format(' type="nope"', "")), "there is no type 'nope'"),
        (schema(_R.format(' substitutionGroup="s"', _EMPTY)), "substitutionGroup"),
        (schema(_R.format("", '<xs:complexType mixed="true"/>')), "mixed content"),
        (
            schema(
                _R.format(
                    "", "<xs:complexType><xs:sequence><xs:any/></xs:sequence></xs:complexType>"
                )
            ),
            "xs:any is not supported",
        ),
        (schema(_R.format("", _EMPTY + '<xs:key name="k"/>')), 'xs:key "k" is not supported'),
        (schema(_R.format("", "<xs:simpleType><xs:list/></xs:simpleType>")), "xs:list"),
        (schema(_ENDLESS), "always contains itself"),
        (schema(_R.format("", _DEEP)), "nested deeper than 100"),
        (of_type("boolean", '<xs:maxLength value="3"/>'), "the facet xs:maxLength is not"),
        (of_type("string", '<xs:minLength value="9"/><xs:maxLength value="3"/>'), "9 to 3"),
        (of_type("string", '<xs:maxLength value="many"/>'), "'many' is no count"),
        (of_type("int", '<xs:minInclusive value="1e999999"/>'), "is no number"),
        (of_type("string", r'<xs:pattern value="\p{IsGreek}"/>'), "IsGreek"),
        (of_type("string", '<xs:pattern value="(?=a)"/>'), r"\(\? is not supported"),
        (of_type("string", '<xs:pattern value="a&amp;b"/>'), "& outside"),
        (of_type("string", '<xs:pattern value="[^a-z-[x]]"/>'), "is not supported in a pattern"),
        (of_type("string", r'<xs:pattern value="[^\i]"/>'), "in what is taken away"),
        (
            schema(_R.format("", "<xs:complexType><xs:sequence/><xs:all/></xs:complexType>")),
            "xs:all after xs:sequence",
        ),
        (schema(_R.format("", _EMPTY) * 2), 'xs:element "r": it is declared twice'),
        (
            schema(
                _R.format(
                    "",
                    '<xs:complexType><xs:attribute name="a" type="xs:int"/>'
                    '<xs:attribute name="a" type="xs:int"/></xs:complexType>',
                )
            ),
            'xs:attribute "a": it is declared twice',
        ),
        (schema(_R.format("", _EMPTY).replace('"r"', '"1r"')), "begins with a letter"),
        (
            schema(
                _R.format(' type="v"', "")
                + '<xs:simpleType name="v"><xs:restriction base="v"/></xs:simpleType>'
            ),
            "derived from itself",
        ),
    ],
)
def test_what_is_not_in_the_subset_is_named_in_a_line(text, message):
    with pytest.raises(GrammarError, match=message) as error:
        constraints.xml(text)
    assert "\n" not in str(error.value)


def test_a_pattern_that_is_none_is_refused(tokenizer):
    with pytest.raises(GrammarError, match="regex"):
        Constraint(tokenizer, constraints.xml(of_type("string", '<xs:pattern value="a)"/>')))
