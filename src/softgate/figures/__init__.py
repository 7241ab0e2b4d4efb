"""Charts: curves of training, confusion of classes, comparisons of arms, stability of paths. Drawn without a window."""

FORMATS = ("png", "pdf", "svg")
"""Of the files of charts."""
