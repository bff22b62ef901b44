"""The embedded model: a tiny gpt-oss trained here, with its tokenizer."""
