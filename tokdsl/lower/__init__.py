"""Lowering: from the checked graph to a plan of classes and statements."""
