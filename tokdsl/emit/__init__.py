"""Emission: from a plan to the files of a package, as text."""
