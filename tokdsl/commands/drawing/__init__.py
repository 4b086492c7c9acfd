"""Diagrams of models: an outline of the graph, its layout, and two forms of it as text."""
