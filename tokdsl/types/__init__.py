"""Sizes, axes, clocks and the types of values."""
