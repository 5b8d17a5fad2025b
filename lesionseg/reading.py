"""Files of torch, read without running anything that is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lesionseg.errors import InputError, first_sentence


def read_torch(path: Path, *, expected: str, remedy: str) -> Any:
    """What `torch.save` wrote: tensors and plain data alone, on the CPU.

    Args:
        path: the file.
        expected: what it should be, for the message.
        remedy: what the user can do, for the message.

    Raises:
        InputError: no such file, one that is cut off or of another kind, or one that would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        got = "no such file"
    except pickle.UnpicklingError:
        got = "none of torch, or one that holds more than tensors and plain data"
    except Exception as error:  # torch answers malformed bytes with a dozen kinds of exception
        got = "an empty file" if isinstance(error, EOFError) else first_sentence(error)
    raise InputError(path, expected=expected, got=got, remedy=remedy)
