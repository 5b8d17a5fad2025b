"""Reads the file that W&B leaves offline: a LevelDB log of protobuf records, split over blocks."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _FILE_HEADER, _CHUNK_HEADER = 32768, 7, 7
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Every record in the order it was written."""
    content, place, parts = path.read_bytes(), _FILE_HEADER, []
    assert content[:4] == b":W&B"
    while place + _CHUNK_HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _CHUNK_HEADER:  # no room for a header: the block is filled up
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + _CHUNK_HEADER])
        parts.append(content[place + _CHUNK_HEADER : place + _CHUNK_HEADER + length])
        place += _CHUNK_HEADER + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def values(items: Any) -> dict[str, Any]:
    """Key → value of the items of a record."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, a dictionary a call."""
    return [values(record.history.item) for record in records(path) if record.WhichOneof("record_type") == "history"]
