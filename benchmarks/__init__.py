"""Measurements of built models beside published implementations."""
