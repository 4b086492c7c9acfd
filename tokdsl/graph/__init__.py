"""The typed graph: what `elaborate` makes of a program and every later stage reads."""
