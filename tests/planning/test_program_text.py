"""What is read from a compiled program's text: collectives, arithmetic, bytes moved, by hand."""

import pytest

from gptoss_jax.planning import collectives, flops, hlo, traffic

COLLECTIVES = """
ENTRY %main (x: f32[8,2880]) -> f32[8,2880] {
  %x = f32[8,2880]{1,0:T(8,128)} parameter(0)
  %y = bf16[4,16]{1,0} parameter(1)
  %a = f32[8,2880]{1,0:T(8,128)} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %b = (bf16[4,16]{1,0}, bf16[8,16]{1,0}) all-gather-start(%y), replica_groups={{0,1},{2,3}}
  %c = bf16[8,16]{1,0} all-gather-done(%b)
  ROOT %d = f32[8,2880]{1,0} all-reduce(%a), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_of_a_text():
    module = hlo.parse(COLLECTIVES)
    large, small = 8 * 2880 * 4, 8 * 16 * 2
    assert collectives.listed(module) == {"all-reduce": (2, 2 * large), "all-gather": (1, small)}
    # By hand: three quarters and seven eighths of an array twice, half of the small one.
    assert collectives.sent(module, {}) == 2 * large * (3 / 4 + 7 / 8) + small / 2


DOTS = """
%more (s: (s32[], f32[6,4])) -> pred[] {
  %s = (s32[], f32[6,4]) parameter(0)
  ROOT %true = pred[] constant(true)
}

%body (s: (s32[], f32[6,4])) -> (s32[], f32[6,4]) {
  %s = (s32[], f32[6,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[6,4]{1,0} get-tuple-element(%s), index=1
  %y = f32[6,6]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}, LOOP
  ROOT %t = (s32[], f32[6,4]{1,0}) tuple(%i, %x)
}

ENTRY %main (a: f32[3,5,7], b: f32[3,7,2]) -> f32[3,5,2] {
  %a = f32[3,5,7]{2,1,0} parameter(0)
  %b = f32[3,7,2]{2,1,0} parameter(1)
  %s = (s32[], f32[6,4]) parameter(2)
  %w = (s32[], f32[6,4]) while(%s), condition=%more, body=%body
  ROOT %c = f32[3,5,2]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}
}
"""


def test_arithmetic_of_a_program_counted_by_hand():
    rounds = {"expert_tiles": 10}
    text = DOTS.replace("LOOP", 'metadata={op_name="expert_tiles/while/body/dot"}')
    assert flops.counted(hlo.parse(text), rounds) == 2 * 3 * 5 * 2 * 7 + 10 * 2 * 6 * 6 * 4


PROGRAM = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%row (table: u8[8,100], at: s32[]) -> f32[100] {
  %table = u8[8,100]{1,0:T(8,128)(4,1)} parameter(0)
  %retiled = u8[8,100]{1,0} copy(%table)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = u8[1,100]{1,0} dynamic-slice(%retiled, %at, %zero), dynamic_slice_sizes={1,100}
  %flat = u8[100]{0} bitcast(%slice)
  ROOT %wide = f32[100]{0} convert(%flat)
}

%body (state: (s32[], u8[8,100])) -> (s32[], u8[8,100]) {
  %state = (s32[]{:S(6)}, u8[8,100]{1,0}) parameter(0)
  %i = s32[]{:S(6)} get-tuple-element(%state), index=0
  %t = u8[8,100]{1,0} get-tuple-element(%state), index=1
  %read = f32[100]{0} fusion(%t, %i), kind=kLoop, calls=%row, metadata={op_name="LOOP/while/body/a"}
  %none = f32[]{:S(1)} constant(0)
  %sum = f32[]{:T(128)} reduce(%read, %none), dimensions={0}, to_apply=%add
  ROOT %next = (s32[]{:S(6)}, u8[8,100]{1,0}) tuple(%i, %t)
}

%more (s: (s32[], u8[8,100])) -> pred[] {
  %s = (s32[]{:S(6)}, u8[8,100]{1,0}) parameter(0)
  ROOT %true = pred[]{:S(6)} constant(true)
}

ENTRY %main (table: u8[8,100]) -> u8[8,100] {
  %table = u8[8,100]{1,0} parameter(0)
  %begin = s32[]{:S(6)} constant(0)
  %start = (s32[]{:S(6)}, u8[8,100]{1,0}) tuple(%begin, %table)
  %while = (s32[]{:S(6)}, /*index=1*/u8[8,100]{1,0}) while(%start), condition=%more, body=%body
  ROOT %out = u8[8,100]{1,0} get-tuple-element(%while), index=1
}
"""


@pytest.mark.parametrize("scope", ["rounds_3", "expert_tiles"])
def test_bytes_of_a_program_counted_by_hand(scope):
    module = hlo.parse(PROGRAM.replace("LOOP", scope))
    assert traffic.moved(module, {"expert_tiles": 3}) == 3 * (100 + 400 + 400 + 4)


def test_a_large_loop_of_unknown_rounds_is_refused():
    huge = PROGRAM.replace("[100]", "[1000000]").replace("LOOP", "x")
    with pytest.raises(KeyError, match="while"):
        traffic.moved(hlo.parse(huge), {})
    assert traffic.moved(hlo.parse(PROGRAM.replace("LOOP", "x")), {}) == 904


BRANCHES = """
%once (x: f32[100]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  ROOT %y = f32[100]{0} negate(%x)
}

%twice (x: f32[100]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  %y = f32[100]{0} negate(%x)
  ROOT %z = f32[100]{0} negate(%y)
}

ENTRY %main (which: WHICH, x: f32[100]) -> f32[100] {
  %which = WHICH parameter(0)
  %x = f32[100]{0} parameter(1)
  ROOT %z = f32[100]{0} conditional(%which, %x, %x), COMPUTATIONS
}
"""


@pytest.mark.parametrize(
    ("which", "computations"),
    [
        ("pred[]", "true_computation=%once, false_computation=%twice"),
        ("pred[]", "true_computation=%twice, false_computation=%once"),
        ("s32[]", "branch_computations={%once, %twice}"),
    ],
)
def test_of_branches_the_larger_counts(which, computations):
    text = BRANCHES.replace("WHICH", which).replace("COMPUTATIONS", computations)
    assert traffic.moved(hlo.parse(text), {}) == 2 * (400 + 400)


# Packed weights of 8 experts of 64 x 10, and what a kernel multiplies with them.
KERNEL = """
ENTRY %main (x: bf16[3,16,64], w: u8[8,32,10], s: u8[16,10], e: s32[3]) -> f32[3,16,10] {
  %x = bf16[3,16,64]{2,1,0} parameter(0)
  %w = u8[8,32,10]{2,1,0} parameter(1)
  %s = u8[16,10]{1,0} parameter(2)
  %e = s32[3]{0} parameter(3)
  ROOT %y = f32[3,16,10]{2,1,0} custom-call(%x, %w, %s, %e), custom_call_target="mosaic", metadata={op_name="jit(f)/SCOPE/kernel"}, backend_config={module = "op_name=\"x/active_tiles_of_4/x\" body=%main"}
}
"""  # noqa: E501 - the compiler's text has an instruction a line


def test_bytes_and_flops_of_a_kernel_counted_by_hand():
    """Two tiles read 340 bytes each: 32 x 10 of blocks and 2 x 10 of scales."""
    x, y, expert = 3 * 16 * 64 * 2, 3 * 16 * 10 * 4, 12
    tiles = {"active_tiles": 2.0}
    of_8 = hlo.parse(KERNEL.replace("SCOPE", "active_tiles_of_8"))
    assert traffic.moved(of_8, tiles) == x + 2 * 340 + expert + y
    # Each of 64 rows of the matmul unit, with two weights a byte of the blocks.
    assert flops.counted(of_8, tiles) == 2 * 64 * (2 * 64 * 10)
    # Taken for attention, 64 rows with each of what would be the keys.
    keys = hlo.parse(KERNEL.replace("SCOPE", "attend_cache"))
    assert flops.counted(keys, tiles) == 2 * 64 * (8 * 32 * 10)
    of_all = hlo.parse(KERNEL.replace("SCOPE", "any"))
    assert traffic.moved(of_all, tiles) == x + 8 * 340 + expert + y
    assert flops.counted(of_all, tiles) == 0
