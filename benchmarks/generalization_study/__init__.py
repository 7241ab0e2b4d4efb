"""The study of docs/study.md: its plan, its runs, its results and its report; `benchmarks/study.py` is the command."""
