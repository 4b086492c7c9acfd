"""Regions of the graph that become kernels: how they are found, written and reported."""
