"""Regular expressions of decimal numbers within bounds, without exponents or leading zeros."""

from __future__ import annotations

from decimal import Decimal

# Who reads XML need not know longer numbers, and a model's come to an end.
INTEGER = "-?(?:0|[1-9][0-9]{0,19})"
DECIMAL = rf"{INTEGER}(?:\.[0-9]{{1,8}})?"
_FRACTION = r"(?:\.[0-9]+)?"
_POSITIVE = f"(?:0|[1-9][0-9]*){_FRACTION}"


def at_least(low: Decimal, *, inclusive: bool = True) -> str:
    """Numbers that are not below a bound, or are above it."""
    if low > 0 or (low == 0 and not inclusive):
        return _from(low, inclusive)
    # Minus zero is zero.
    return rf"(?:{_POSITIVE}|-{_up_to(-low, inclusive)})"


def at_most(high: Decimal, *, inclusive: bool = True) -> str:
    """Numbers that are not above a bound, or are below it."""
    if high < 0 or (high == 0 and not inclusive):
        return f"-{_from(-high, inclusive)}"
    return rf"(?:{_up_to(high, inclusive)}|-{_POSITIVE})"


def _from(low: Decimal, inclusive: bool) -> str:
    """Numbers without a sign from `low` on."""
    whole, fraction = _digits(low)
    more = [f"[1-9][0-9]{{{len(whole)},}}", *_other(whole, above=True)]
    # After the larger digits of a fraction, any.
    larger = [rf"\.{digits}[0-9]*" for digits in _fractions(fraction, above=True)]
    end = "[0-9]*" if inclusive else "[0-9]*[1-9][0-9]*"
    larger.append(rf"\.{fraction}{end}" if fraction or not inclusive else _FRACTION)
    return f"(?:(?:{'|'.join(more)}){_FRACTION}|{whole}(?:{'|'.join(larger)}))"


def _up_to(high: Decimal, inclusive: bool) -> str:
    """Numbers without a sign up to `high`."""
    whole, fraction = _digits(high)
    fewer = ["0", f"[1-9][0-9]{{0,{len(whole) - 2}}}"] if len(whole) > 1 else []
    fewer += _other(whole, above=False)
    # Before a fraction's end every beginning of it is smaller.
    smaller = [rf"\.{digits}[0-9]*" for digits in _fractions(fraction, above=False)]
    smaller += [rf"\.{fraction[:i]}" for i in range(1, len(fraction))]
    if fraction:
        smaller.append("")
    if inclusive:
        smaller.append(rf"\.{fraction}0*" if fraction else r"(?:\.0+)?")
    below = [f"(?:{'|'.join(fewer)}){_FRACTION}"] if fewer else []
    equal = [f"{whole}(?:{'|'.join(smaller)})"] if smaller else []
    # Below zero there is nothing without a sign.
    return f"(?:{'|'.join(below + equal)})" if below or equal else "[^\\s\\S]"


def _digits(number: Decimal) -> tuple[str, str]:
    """Before and after the point, without zeros that say nothing."""
    whole, _, fraction = f"{abs(number):f}".partition(".")
    return whole.lstrip("0") or "0", fraction.rstrip("0")


def _other(digits: str, *, above: bool) -> list[str]:
    """Whole numbers of as many digits that are larger, or smaller."""
    found = []
    for i, digit in enumerate(digits):
        first = "1" if i == 0 and len(digits) > 1 else "0"
        low, high = (chr(ord(digit) + 1), "9") if above else (first, chr(ord(digit) - 1))
        if low <= high:
            found.append(f"{digits[:i]}[{low}-{high}][0-9]{{{len(digits) - i - 1}}}")
    return found


def _fractions(digits: str, *, above: bool) -> list[str]:
    """Beginnings of fractions that are larger, or smaller."""
    found = []
    for i, digit in enumerate(digits):
        low, high = (chr(ord(digit) + 1), "9") if above else ("0", chr(ord(digit) - 1))
        if low <= high:
            found.append(f"{digits[:i]}[{low}-{high}]")
    return found
