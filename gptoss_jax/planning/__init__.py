"""Whether a model fits a slice, and what it moves, without the slice."""
