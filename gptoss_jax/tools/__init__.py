"""Tools a model may call, and the loop of its turns and their answers. Imports no JAX."""
