"""What `python -m gptoss_jax.bench` measures."""
