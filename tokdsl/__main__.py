"""`python -m tokdsl`."""

from tokdsl.cli import app

app(prog_name="tokdsl")
