"""The front end: text and YAML to the syntax tree and back, every mistake as a finding."""
