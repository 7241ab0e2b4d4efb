"""Hypothesis 1 measured on digits: training with frozen gates, swaps with all controls, patterns, kernels."""
