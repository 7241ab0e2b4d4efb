"""Networks by name, and the weights that they begin with."""

from softgate.models.networks import (
    STEMS,
    Architecture,
    NetworkConfig,
    build,
    check_size,
    names,
    needs_transformed_input,
    resolve_stem,
)
from softgate.models.weights import (
    Weights,
    begin_with,
    find_classes,
    head,
    load,
    load_weights,
    read_file,
    read_weights,
    reorder_head,
)

__all__ = [
    "STEMS",
    "Architecture",
    "NetworkConfig",
    "Weights",
    "begin_with",
    "build",
    "check_size",
    "find_classes",
    "head",
    "load",
    "load_weights",
    "names",
    "needs_transformed_input",
    "read_file",
    "read_weights",
    "reorder_head",
    "resolve_stem",
]
