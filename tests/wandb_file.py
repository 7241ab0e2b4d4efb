"""Reads the record file of an offline W&B run: a LevelDB log of protocol buffers."""

import struct
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_run(path: Path) -> list[Any]:
    """All records of a run, in order.

    After a 7-byte identification, the file is cut into blocks of 32 KiB; a record is one fragment or several, each
    with a checksum, a length and a kind.
    """
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    records, pieces, at = [], b"", HEADER
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        pieces += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records
