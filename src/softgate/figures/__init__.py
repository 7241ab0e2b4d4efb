"""Charts: curves of training, comparisons of arms, stability of paths. Drawn without a window, as SVG or PNG."""
