"""Files of heads."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch

from ...backbones.checkpoints import check_weights, read_safetensors
from .heads import ProbeHead


def save_head(head: ProbeHead, path: str | os.PathLike, **facts: Any) -> None:
    """Write a head as safetensors, with its arguments and `facts` (anything that JSON holds) beside the weights.

    Raises:
        OSError: The file cannot be written, because the disk is full for instance.
    """
    state = {key: value.contiguous() for key, value in head.state_dict().items()}
    # The library's own writing of files hides what the disk says in an error of its own kind.
    Path(path).write_bytes(safetensors.torch.save(state, {"head": json.dumps(head.config), "facts": json.dumps(facts)}))


def load_head(path: str | os.PathLike) -> tuple[ProbeHead, dict[str, Any]]:
    """Read what `save_head` wrote.

    Returns:
        The head in evaluation mode, and the facts.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It was not written by `save_head`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no head {str(path)!r}")
    try:
        state, metadata = read_safetensors(path)
        config, facts = json.loads(metadata["head"]), json.loads(metadata["facts"])
        shape = (config["num_classes"], config["channels"])
        # Before a head is made as large as the text says.
        if tuple(state["classifier.weight"].shape) != shape or config["num_queries"] > config["channels"]:
            raise ValueError(f"its classifier is not {shape[0]} x {shape[1]}")
        head = ProbeHead(**config)
        check_weights(state, head)
        head.load_state_dict(state)
    except Exception as error:  # of the file, of JSON, of arguments that are none
        raise ValueError(f"{path}: not a head written by attnzoo probe: {error}") from error
    return head.eval(), facts
