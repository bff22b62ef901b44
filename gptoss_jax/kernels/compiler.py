"""What programs with packed experts are to be compiled with."""

from typing import Any


def compiler_options(platform: str) -> dict[str, Any]:
    """For `Lowered.compile`, of generation and of training.

    XLA:TPU brings small arrays whole into VMEM to gather bytes from them, as 32-bit words: the
    scales of 8 experts take 16.5 MiB, and its limit for that is 16.
    """
    return {"xla_tpu_scoped_vmem_limit_kib": "20480"} if platform == "tpu" else {}
