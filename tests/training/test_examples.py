"""Which tokens are learned."""

import pytest

from gptoss_jax.text import HarmonyError
from gptoss_jax.text.harmony import from_chat
from gptoss_jax.training.examples import example

CALL = {"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "reasoning": "old thought", "content": "old answer"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "reasoning": "thought", "content": "One moment.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "42"},
    {"role": "assistant", "reasoning": "so", "content": "It is 42."},
]
ALL = ("analysis", "final", "calls", "preamble")


def learned(tokenizer, chat=CHAT, train_on=ALL, **options):
    """The learned tokens as text, what lies between them as …"""
    one = example(tokenizer, from_chat(chat), train_on, **options)
    pieces = [
        tokenizer.token_bytes(int(i)).decode() if learn else "…"
        for i, learn in zip(one.ids_S, one.learn_S, strict=True)
    ]
    text = "".join(pieces)
    while "……" in text:
        text = text.replace("……", "…")
    return text


ANALYSIS = "<|channel|>analysis<|message|>thought<|end|>"
PREAMBLE = "<|channel|>commentary<|message|>One moment.<|end|>"
CALLED = (
    " to=functions.add<|channel|>commentary <|constrain|>json<|message|>" + '{"a": 1}' + "<|call|>"
)
SO = "<|channel|>analysis<|message|>so<|end|>"
FINAL = "<|channel|>final<|message|>It is 42.<|return|>"
OLD = "<|channel|>final<|message|>old answer"
NEXT = "<|start|>assistant"


def test_everything_the_model_writes_is_learned_and_nothing_else(tokenizer):
    """Within a turn it begins its next message itself; a turn's first beginning is the prompt's."""
    assert learned(tokenizer) == (f"…{ANALYSIS}{NEXT}{PREAMBLE}{NEXT}{CALLED}…{SO}{NEXT}{FINAL}")


def test_an_earlier_answer_is_learned_unless_its_analysis_is_dropped(tokenizer):
    """Its end is not: the model ended it with <|return|>."""
    thoughtless = [*CHAT[:2], {"role": "assistant", "content": "old answer"}, *CHAT[3:]]
    assert learned(tokenizer, thoughtless).startswith(f"…{OLD}…{ANALYSIS}")
    assert OLD not in learned(tokenizer)


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        (("analysis",), f"…{ANALYSIS}…{SO}…"),
        (("final",), f"…{NEXT}{FINAL}"),
        (("calls",), f"…{NEXT}{CALLED}…"),
        (("preamble",), f"…{NEXT}{PREAMBLE}…"),
        (("final", "calls"), f"…{NEXT}{CALLED}…{NEXT}{FINAL}"),
    ],
)
def test_channels_not_named_are_context_only(tokenizer, train_on, expected):
    assert learned(tokenizer, train_on=train_on) == expected


def test_analysis_of_earlier_turns_is_kept_on_demand(tokenizer):
    old = "<|channel|>analysis<|message|>old thought<|end|>"
    text = learned(tokenizer, keep_analysis=True)
    assert text.startswith(f"…{old}{NEXT}{OLD}…{ANALYSIS}")


def test_what_nobody_answers_is_left_out(tokenizer):
    asked = [*CHAT[1:3], {"role": "user", "content": "and?"}]
    analysis = "<|channel|>analysis<|message|>old thought<|end|>"
    assert learned(tokenizer, asked) == f"…{analysis}{NEXT}{OLD}<|return|>"


def test_special_tokens_spelt_in_content_begin_no_message(tokenizer):
    said = "<|start|>assistant<|channel|>final"
    chat = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
    assert learned(tokenizer, chat) == f"…<|channel|>final<|message|>{said}<|return|>"


def test_nothing_to_learn_is_refused(tokenizer):
    with pytest.raises(HarmonyError, match="no assistant turn"):
        example(tokenizer, from_chat(CHAT[:2]), ALL)
    with pytest.raises(HarmonyError, match=r"no assistant message on a trained channel \(calls\)"):
        example(tokenizer, from_chat(CHAT[:3]), ("calls",))
