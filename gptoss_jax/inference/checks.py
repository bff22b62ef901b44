"""What a request may ask of sampling."""

import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_jax.errors import UserError
from gptoss_jax.inference.requests import MOST_LOGPROBS, Request

# As the OpenAI API has them; of the repetition penalty what float32 logits bear.
PENALTIES = (-2.0, 2.0)
REPETITION = (0.01, 100.0)
BIASES = (-100.0, 100.0)


def check_sampling(request: Request, vocab_size: int) -> None:
    """Raises a UserError that names a value of the wrong type or out of its range."""
    _check_types(request)
    if request.max_tokens < 1:
        raise UserError(f"max_tokens is {request.max_tokens}; it must be at least 1")
    if not 0 <= request.temperature <= sys.float_info.max:
        raise UserError(f"temperature is {request.temperature}; it must be 0 (greedy) or more")
    if not 0 < request.top_p <= 1:
        raise UserError(f"top_p is {request.top_p}; it must be above 0 and at most 1")
    if not 0 <= request.top_k < 2**31:
        raise UserError(f"top_k is {request.top_k}; it must lie in 0 (all tokens)..{2**31 - 1}")
    _check_span("min_p", request.min_p, (0, 1))
    _check_span("repetition_penalty", request.repetition_penalty, REPETITION)
    _check_span("presence_penalty", request.presence_penalty, PENALTIES)
    _check_span("frequency_penalty", request.frequency_penalty, PENALTIES)
    _check_span("seed", request.seed, (0, 2**32 - 1))
    if request.logprobs is not None:
        _check_span("logprobs", request.logprobs, (0, MOST_LOGPROBS))
    _check_biases(request.logit_bias, vocab_size)
    _check_stops(request.stop)
    if request.adapter is not None:
        _check_type("adapter", request.adapter, str, "a name")
    # Its own type is not looked at: without constraints nothing of llguidance is needed.
    if request.constraint is not None and not hasattr(request.constraint, "matcher"):
        raise UserError(
            f"constraint is of type {type(request.constraint).__name__}; it must be a "
            "text.constraints.Constraint"
        )
    if request.constraint is not None and request.constraint.vocab_size > vocab_size:
        raise UserError(
            f"constraint is of a tokenizer with {request.constraint.vocab_size} ids, and the model "
            f"has {vocab_size}; make it with the model's own tokenizer"
        )


def _check_types(request: Request) -> None:
    whole = ["max_tokens", "top_k", "seed", "priority"]
    for name in whole + ["logprobs"] * (request.logprobs is not None):
        _check_type(name, getattr(request, name), numbers.Integral, "a whole number")
    penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    for name in ("temperature", "top_p", "min_p", *penalties):
        _check_type(name, getattr(request, name), numbers.Real, "a number")


def _check_biases(biases: Any, vocab_size: int) -> None:
    if not isinstance(biases, Mapping):
        raise UserError(f"logit_bias is {biases!r}; it must be a dictionary of id: number")
    for id_, bias in biases.items():
        _check_type("an id of logit_bias", id_, numbers.Integral, "a whole number")
        _check_type(f"logit_bias of {id_}", bias, numbers.Real, "a number")
        if not 0 <= id_ < vocab_size:
            raise UserError(f"logit_bias: id {id_} is outside the {vocab_size}-token vocabulary")
        _check_span(f"logit_bias of {id_}", bias, BIASES)


def _check_stops(stops: Any) -> None:
    # Python's strings are sequences of strings; nobody means one as that.
    listed = isinstance(stops, Sequence) and not isinstance(stops, str)
    if not listed or not all(isinstance(s, str) and s for s in stops):
        raise UserError(f"stop is {stops!r}; it must be a list of strings, none of them empty")


def _check_span(name: str, value: float, span: tuple[float, float]) -> None:
    least, most = span
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; it must lie in {least:.10g}..{most:.10g}")


def _check_type(name: str, value: Any, kind: type, what: str) -> None:
    # Python's True is a number; nobody means it as one.
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UserError(f"{name} is {value!r}; it must be {what}")
