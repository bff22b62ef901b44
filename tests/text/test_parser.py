"""The parser on well-formed output, on what models really emit, and on anything at all."""

import hypothesis
import hypothesis.strategies as st
import pytest

from gptoss_jax.text.harmony import (
    Delta,
    HarmonyParser,
    Message,
    MessageEnd,
    MessageStart,
    render_conversation,
    to_turn,
)

FEW = hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
JSON = "<|constrain|>json"


def a(content, channel=None, recipient=None, content_type=None, flagged=False):
    return Message("assistant", content, None, recipient, channel, content_type, flagged)


def odd(content, channel=None, **rest):
    return a(content, channel, flagged=True, **rest)


def call(content, name="functions.f", channel="commentary", content_type=JSON, flagged=False):
    return a(content, channel, name, content_type, flagged)


ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"

WELL_FORMED = {
    f"{ANALYSIS}think{NEXT}{FINAL}hi<|return|>": [a("think", "analysis"), a("hi", "final")],
    f"{FINAL}<|return|>": [a("", "final")],
    # The recipient before or after the channel, with and without a space before <|constrain|>.
    f" to=functions.f<|channel|>commentary {JSON}<|message|>{{}}<|call|>": [call("{}")],
    f" to=functions.f<|channel|>commentary{JSON}<|message|>{{}}<|call|>": [call("{}")],
    f"<|channel|>commentary to=functions.f {JSON}<|message|>{{}}<|call|>": [call("{}")],
    f"<|channel|>commentary to=functions.f{JSON}<|message|>{{}}<|call|>": [call("{}")],
    "<|channel|>commentary to=functions.f <|constrain|> json <|message|>{}<|call|>": [call("{}")],
    "<|channel|>commentary to=functions.f json<|message|>{}<|call|>": [
        call("{}", content_type="json")
    ],
    "<|channel|>commentary to=functions.f<|message|>{}<|call|>": [call("{}", content_type=None)],
    "<|channel|>analysis to=python code<|message|>1<|call|>": [
        call("1", "python", "analysis", "code")
    ],
    # openai-harmony 0.0.8 reads this one's type as a recipient.
    f"<|channel|>final {JSON}<|message|>{{}}<|return|>": [a("{}", "final", None, JSON)],
    f"{ANALYSIS}x{NEXT}<|channel|>commentary<|message|>Plan.{NEXT} to=functions.f"
    f"<|channel|>commentary {JSON}<|message|>{{}}<|call|>": [
        a("x", "analysis"),
        a("Plan.", "commentary"),
        call("{}"),
    ],
}

MALFORMED = {
    # The answer is there, and a token too many follows it (vllm 50690).
    f"{FINAL}Answer<|end|><|return|>": [a("Answer", "final")],
    f"{FINAL}Answer<|end|><|end|><|return|><|return|>": [a("Answer", "final")],
    f"{FINAL}Answer<|return|>tail": [a("Answer", "final"), odd("tail")],
    f"{FINAL}Answer<|end|> more": [a("Answer", "final"), odd(" more")],
    # No <|message|>.
    "<|channel|>final The answer is 42, as you know.<|return|>": [
        odd(" The answer is 42, as you know.", "final")
    ],
    "<|channel|>final\n\nHello<|return|>": [odd("\n\nHello", "final")],
    "<|channel|>final__HANDOFF__<|return|>": [odd("__HANDOFF__", "final")],
    '<|channel|>final{"a": 1}<|return|>': [odd('{"a": 1}', "final")],
    f'<|channel|>commentary to=functions.f {JSON}{{"a":1}}<|call|>': [
        call('{"a":1}', flagged=True)
    ],
    '<|channel|>commentary to=functions.f{"a":1}<|call|>': [
        call('{"a":1}', content_type=None, flagged=True)
    ],
    # No header at all: refusals (harmony 80), answers after the analysis (sglang 31019).
    f"We must refuse. This is not allowed, so we say no.{NEXT}{FINAL}No.<|return|>": [
        odd("We must refuse. This is not allowed, so we say no."),
        a("No.", "final"),
    ],
    "Paris<|return|>": [odd("Paris")],
    f'{ANALYSIS}think<|end|>{{"city":"Paris"}}<|return|>': [
        a("think", "analysis"),
        odd('{"city":"Paris"}'),
    ],
    # <|end|><|start|>assistant left out, or half of it.
    f"{ANALYSIS}think{FINAL}hi<|return|>": [a("think", "analysis"), a("hi", "final")],
    f"{ANALYSIS}think<|end|>{FINAL}hi<|return|>": [a("think", "analysis"), a("hi", "final")],
    f"{ANALYSIS}think<|start|>assistant{FINAL}hi<|return|>": [
        a("think", "analysis"),
        a("hi", "final"),
    ],
    f"{ANALYSIS}think<|end|><|message|>hi<|return|>": [a("think", "analysis"), odd("hi")],
    "<|message|>hi<|return|>": [a("hi")],
    # Doubled starts and roles (vllm 43408, tenstorrent 386).
    f"{ANALYSIS}x<|end|><|start|><|start|>assistant{FINAL}hi<|return|>": [
        a("x", "analysis"),
        a("hi", "final"),
    ],
    f"{ANALYSIS}x<|end|><|start|>assistantassistant{FINAL}hi<|return|>": [
        a("x", "analysis"),
        a("hi", "final"),
    ],
    f"<|start|>assistant{FINAL}hi<|return|>": [a("hi", "final")],
    f"<|end|><|start|>assistant{FINAL}hi<|return|>": [a("hi", "final")],
    # Garbage channels (llama.cpp 27720), and an empty one.
    "<|channel|><|message|>hi<|return|>": [a("hi")],
    "<|channel|>??<|message|>hi<|return|>": [odd("hi", "??")],
    "<|channel|>thoughts<|message|>hi<|return|>": [odd("hi", "thoughts")],
    "<|channel|>commentary?<|message|>hi<|return|>": [
        odd("?", "commentary"),
        a("hi", "commentary"),
    ],
    f"<|channel|>commentary 2? to=functions.f {JSON}<|message|>{{}}<|call|>": [
        odd(" 2?", "commentary"),
        call("{}"),
    ],
    "<|channel|>commentary to=assistant<|channel|>commentary?<|message|>x"
    f"{NEXT}{FINAL}y<|return|>": [
        odd("?", "commentary"),
        a("x", "commentary", "assistant"),
        a("y", "final"),
    ],
    f"<|channel|>We need to think{NEXT}{ANALYSIS}x{NEXT}{FINAL}y<|return|>": [
        odd("We need to think"),
        a("x", "analysis"),
        a("y", "final"),
    ],
    "<|channel|>so we go<|message|>hi<|return|>": [odd("so we go"), odd("hi")],
    "<|channel|>analysis<|channel|>final<|message|>hi<|return|>": [a("hi", "final")],
    "<|channel|>final<|channel|>thoughts<|message|>hi<|return|>": [
        a("hi", "final", content_type="thoughts")
    ],
    "<|channel|>final ok <|constrain|>json to=x<|return|>": [odd(" ok json to=x", "final")],
    # Tool calls: the analysis channel, no `to=`, no channel.
    f"<|channel|>analysis to=functions.f {JSON}<|message|>{{}}<|call|>": [
        call("{}", channel="analysis")
    ],
    f"<|channel|>commentary functions.f {JSON}<|message|>{{}}<|call|>": [call("{}")],
    f" to=functions.f {JSON}<|message|>{{}}<|call|>": [call("{}", channel=None)],
    "<|channel|>commentary to=f<|message|>{}<|call|>": [call("{}", "f", content_type=None)],
    "<|channel|>commentary to=functions.f code<|message|>{}<|call|><|start|>assistant": [
        call("{}", content_type="code")
    ],
    # Special tokens inside content.
    f"{FINAL}a<|message|>b<|return|>": [odd("a<|message|>b", "final")],
    f"{FINAL}a<|constrain|>b<|return|>": [odd("a<|constrain|>b", "final")],
    f"{FINAL}a<|startoftext|>b<|return|>": [odd("a<|startoftext|>b", "final")],
    f"{FINAL}a<|endoftext|>": [a("a", "final")],
    # A header that never ends, then does.
    f"<|channel|>commentary {'word ' * 80}<|message|>x<|end|>": [
        odd(f" {'word ' * 80}", "commentary"),
        odd("x", "commentary"),
    ],
    # Cut off.
    "": [],
    "<|channel|>": [],
    "<|channel|>analysis": [odd("", "analysis")],
    "<|channel|>fin": [odd("fin")],
    "<|channel|>commentary to=functions.f": [call("", content_type=None, flagged=True)],
    JSON: [odd("json")],
    f"{JSON}<|return|>": [odd("json")],
    f"{ANALYSIS}x{NEXT} <|constrain|> code<|end|>": [a("x", "analysis"), odd("code")],
    f"{FINAL}Half an ans": [a("Half an ans", "final")],
    f"{ANALYSIS}x<|end|><|start|>": [a("x", "analysis")],
    f"{ANALYSIS}x<|end|><|start|>assistant": [a("x", "analysis")],
    f"{ANALYSIS}x{NEXT}<|channel|>final": [a("x", "analysis"), odd("", "final")],
    # The model speaks for others.
    f"{FINAL}hi<|end|><|start|>user<|message|>and you?<|end|>": [
        a("hi", "final"),
        Message("user", "and you?", flagged=True),
    ],
    f"{FINAL}hi<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>3<|end|>": [
        a("hi", "final"),
        Message("tool", "3", "functions.f", "assistant", "commentary", flagged=True),
    ],
}


def run(o200k, token_ids, role="assistant"):
    parser = HarmonyParser(o200k, role)
    events = [e for i in token_ids for e in parser.push(i)]
    return parser, events + parser.finish()


def check_events(parser, events):
    """Events agree with the messages: one start, the text in pieces, one end, in order."""
    texts, ended = {}, []
    for event in events:
        assert event.index == len(ended)
        if isinstance(event, MessageStart):
            assert event.index not in texts
            assert event.message.content == ""
            texts[event.index] = ""
        elif isinstance(event, Delta):
            assert event.text
            texts[event.index] += event.text
        elif isinstance(event, MessageEnd):
            assert event.message.content == texts[event.index]
            ended.append(event.message)
    assert ended == parser.messages and len(texts) == len(ended)
    flagged = {e.index for e in events if isinstance(e, Delta) and e.flagged}
    assert all(parser.messages[i].flagged for i in flagged)


@pytest.mark.parametrize("output", [*WELL_FORMED, *MALFORMED])
def test_outputs(output, o200k, ids):
    parser, events = run(o200k, ids(output))
    assert parser.messages == (WELL_FORMED | MALFORMED)[output]
    check_events(parser, events)


@pytest.mark.parametrize("output", WELL_FORMED)
def test_well_formed_output_is_not_flagged(output, o200k, ids):
    assert not any(m.flagged for m in HarmonyParser(o200k).parse(ids(output)))


def test_openai_harmony_fails_where_this_parser_does_not(oracle, ids):
    """The table would prove little if the reference read it all."""
    openai_harmony = pytest.importorskip("openai_harmony", reason="needs the oracle extra")

    def fails(output):
        try:
            role = openai_harmony.Role.ASSISTANT
            oracle.parse_messages_from_completion_tokens(ids(output), role)
        except openai_harmony.HarmonyError:
            return True
        return False

    assert sum(map(fails, MALFORMED)) >= 25
    # What it reads and misreads: the type of a structured answer becomes a recipient.
    output = ids(f"<|channel|>final {JSON}<|message|>{{}}")
    [message] = oracle.parse_messages_from_completion_tokens(output, openai_harmony.Role.ASSISTANT)
    assert (message.recipient, message.content_type) == (JSON, None)


def test_text_and_reasoning(o200k, ids):
    output = f"{ANALYSIS}one{NEXT}{ANALYSIS}two{NEXT}{FINAL}hi"
    parser = HarmonyParser(o200k)
    seen = [(parser.push(i), parser.text, parser.reasoning) for i in ids(output)]
    assert seen[-1][1:] == ("hi", "one\ntwo")
    assert (parser.text, parser.reasoning, parser.preamble) == ("hi", "one\ntwo", "")
    assert parser.messages[-1].content == "two"  # the final one is still coming in


def test_a_mangled_call_keeps_its_arguments_clean(o200k, ids):
    output = f"<|channel|>commentary?? to=functions.f {JSON}<|message|>{{}}<|call|>"
    turn = to_turn(HarmonyParser(o200k).parse(ids(output)))
    assert [(c.recipient, c.content) for c in turn.tool_calls] == [("functions.f", "{}")]
    assert turn.flagged


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (f"{FINAL}x<|return|>", "return"),
        (f"{FINAL}x<|endoftext|>", "return"),
        (" to=functions.f<|message|>{}<|call|>", "call"),
        (f"{FINAL}x<|end|>", "end"),
        (f"{FINAL}x<|end|><|return|>", "return"),
        (f"{ANALYSIS}x{NEXT}{FINAL}cut", None),
        (f"{FINAL}x", None),
        ("", None),
    ],
)
def test_finish_reason(output, reason, o200k, ids):
    assert run(o200k, ids(output))[0].finish_reason == reason


def test_text_streams_token_by_token(o200k, ids):
    """Nothing is held back in content, and a missing <|message|> holds back only a few words."""
    parser = HarmonyParser(o200k)
    for i in ids(FINAL):
        parser.push(i)
    words = [parser.push(i) for i in o200k.encode("one two three")]
    assert [[e.text for e in w] for w in words] == [["one"], [" two"], [" three"]]
    parser = HarmonyParser(o200k)
    first = [n for n, i in enumerate(o200k.encode("word " * 30)) if parser.push(i)]
    assert first[0] < 6 and first == list(range(first[0], len(o200k.encode("word " * 30))))


@pytest.mark.parametrize(
    ("output", "held_back"),
    [
        ("<|channel|>final" + "言葉を続ける" * 40, 70),
        ("<|channel|>final" + "international" * 40, 20),
        ('<|channel|>final{"a": 1, "b": 2}', 2),
        ("<|channel|>final\n\nHello there", 2),
        (" to=" + "functions" * 200, 70),
        ("<|channel|>final" + "<|constrain|>" * 200 + "x", 70),
    ],
)
def test_a_header_that_never_ends_is_bounded(output, held_back, o200k, ids):
    parser = HarmonyParser(o200k)
    first = next(n for n, i in enumerate(ids(output)) if parser.push(i))
    assert first <= held_back + 2


def test_events_carry_the_header(o200k, ids):
    _, events = run(
        o200k, ids(f"<|channel|>commentary to=functions.f {JSON}<|message|>{{}}<|call|>")
    )
    start, delta, end = events
    assert start == MessageStart(0, call(""))
    assert delta == Delta(0, "{}", "assistant", "commentary", "functions.f", False)
    assert end == MessageEnd(0, call("{}"), "<|call|>")


def test_finish_twice_changes_nothing(o200k, ids):
    parser, _ = run(o200k, ids(f"{FINAL}x"))
    assert parser.finish() == [] and len(parser.messages) == 1


# --- anything at all ------------------------------------------------------------------------------

MARKS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>")
MARKS += ("<|return|>", "<|endoftext|>", "<|startoftext|>", "<|endofprompt|>")
WORDS = ("assistant", "user", "system", "functions.f", "python", "analysis", "commentary", "final")
WORDS += (
    " to=",
    " to=functions.f",
    " json",
    " code",
    "to",
    "=",
    ":",
    "{",
    "}",
    "[",
    "\n",
    " ",
    "?",
)
WORDS += ("日本", "🌤️", "😀", "commentary?", "finality", "assistantassistant")


def everything_said(messages):
    fields = ((m.name, m.recipient, m.channel, m.content_type, m.content) for m in messages)
    return "\n".join(f or "" for group in fields for f in group)


@FEW
@hypothesis.given(
    pieces=st.lists(
        st.one_of(st.sampled_from(MARKS), st.sampled_from(WORDS), st.just("#")), max_size=40
    ),
    role=st.sampled_from(["assistant", None]),
)
def test_any_sequence_parses_and_loses_no_text(pieces, role, o200k, ids):
    """Every `#` becomes a word of its own, which must turn up in some message."""
    marked = [f" w{n}q" if p == "#" else p for n, p in enumerate(pieces)]
    parser, events = run(o200k, ids("".join(marked)), role)
    check_events(parser, events)
    said = everything_said(parser.messages)
    for n, piece in enumerate(pieces):
        assert piece != "#" or f"w{n}q" in said


@FEW
@hypothesis.given(
    token_ids=st.lists(
        st.one_of(
            st.integers(199_990, 200_020),
            st.sampled_from([200_002, 200_003, 200_005, 200_006, 200_007, 200_008, 200_012]),
            st.integers(-3, 202_000),
            st.sampled_from([-(10**30), 10**30]),
        ),
        max_size=40,
    ),
    role=st.sampled_from(["assistant", "user", "", None]),
)
def test_any_ids_parse(token_ids, role, o200k):
    check_events(*run(o200k, token_ids, role))


@FEW
@hypothesis.given(token_ids=st.lists(st.integers(0, 199_997), min_size=1, max_size=60))
def test_content_comes_out_as_it_decodes(token_ids, o200k, ids):
    """Random tokens end in the middle of characters everywhere."""
    parser, events = run(o200k, [*ids(FINAL), *token_ids])
    assert parser.text == o200k.decode(token_ids)
    check_events(parser, events)


@FEW
@hypothesis.given(token_ids=st.lists(st.integers(0, 199_997), min_size=1, max_size=60))
def test_text_without_a_header_is_all_shown(token_ids, o200k):
    """Blanks alone are none, and `to=` or `json {` would be read as what they are in a header."""
    text = o200k.decode(token_ids)
    parser, _ = run(o200k, token_ids)
    hypothesis.assume("to=" not in text and not text.startswith(("json", "functions", "python")))
    assert parser.text == (text if text.strip() else "")


NAME = st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True)
CONTENT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from(MARKS)
)
TYPE = st.sampled_from([None, JSON, "json", "code"])
ANY_MESSAGE = st.one_of(
    st.builds(Message, st.sampled_from(["system", "developer", "user"]), CONTENT),
    st.builds(Message, st.just("user"), CONTENT, name=NAME),
    st.builds(a, CONTENT, st.sampled_from(["analysis", "commentary", "final", None])),
    st.builds(a, CONTENT, st.just("final"), content_type=st.just(JSON)),
    st.builds(
        a,
        CONTENT,
        st.sampled_from(["analysis", "commentary"]),
        st.one_of(NAME.map("functions.{}".format), st.just("python")),
        TYPE,
    ),
    st.builds(
        Message,
        st.just("tool"),
        CONTENT,
        name=NAME.map("functions.{}".format),
        recipient=st.just("assistant"),
        channel=st.sampled_from(["commentary", "analysis", None]),
    ),
)


@FEW
@hypothesis.given(messages=st.lists(ANY_MESSAGE, max_size=8))
def test_parse_of_render_is_the_conversation(messages, tokenizer):
    rendered = render_conversation(tokenizer, messages, for_completion=False, keep_analysis=True)
    assert HarmonyParser(tokenizer, role=None).parse(rendered) == messages


@FEW
@hypothesis.given(
    messages=st.lists(ANY_MESSAGE.filter(lambda m: m.role == "assistant"), min_size=1, max_size=5)
)
def test_every_prefix_of_a_turn_is_read(messages, o200k):
    """Cut anywhere: the complete messages are right, and deltas never take anything back."""
    rendered = render_conversation(o200k, messages, for_completion=False, keep_analysis=True)[2:]
    parser, so_far = HarmonyParser(o200k), ""
    for token_id in rendered:
        parser.push(token_id)
        assert parser.messages == messages[: len(parser.messages)]
        assert parser.text.startswith(so_far)
        so_far = parser.text
    parser.finish()
    assert parser.messages == messages
