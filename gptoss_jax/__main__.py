"""`python -m gptoss_jax`: lists the verbs."""

_VERBS = {
    "generate": "answer a prompt, streaming",
    "chat": "a conversation on the terminal",
    "convert": "between checkpoint layouts; merge an adapter; write a synthetic checkpoint",
    "train": "train a model from a config file",
    "plan": "will a model fit a slice, before renting it",
    "drift": "compare a fine-tune's refusals and channels with its base's",
    "bench": "measure the model on this machine",
}


def main() -> None:
    """Prints what there is to run."""
    print("usage: python -m gptoss_jax.VERB --help\n\nverbs:")
    for verb, purpose in _VERBS.items():
        print(f"  {verb:<10} {purpose}")


if __name__ == "__main__":
    main()
