"""Names: files, `use`, the standard library, and what every name is bound to."""
