"""Which NeuronCores this process may use: the runtime's own variables, brought into the form that it takes.

Knows the environment alone. Neuron's runtime reads it once, when `torch_neuronx` first touches a device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mezzotint.errors import SettingInvalid

__all__ = ["NUMBER_OF_CORES", "VISIBLE_CORES", "check_cores", "prepare_cores", "read_cores"]

VISIBLE_CORES = "NEURON_RT_VISIBLE_CORES"
NUMBER_OF_CORES = "NEURON_RT_NUM_CORES"
# A machine has at most 128; a longer range is a mistake that would only fill memory.
MAX_CORE = 1023

ACCEPTED = "numbers of neighbouring cores, such as 0,1 or 0-1"


def read_cores(text: str) -> tuple[int, ...]:
    """The cores that `0,1`, `0-1` or `0-1,2` names, in the order of the text.

    Raises:
        SettingInvalid: it names none, one twice, or is no list of numbers and ranges.
    """
    cores: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last <= MAX_CORE:
            raise SettingInvalid(f"{VISIBLE_CORES} takes {ACCEPTED}; not {text!r}", param=VISIBLE_CORES)
        cores.extend(range(first, last + 1))
    if len(set(cores)) != len(cores):
        raise SettingInvalid(f"{VISIBLE_CORES} names a core twice: {text!r}", param=VISIBLE_CORES)
    return tuple(cores)


def check_cores(cores: Sequence[int]) -> None:
    """Refuse what the runtime refuses.

    Raises:
        SettingInvalid: the cores are not ascending neighbours.
    """
    if list(cores) != list(range(cores[0], cores[0] + len(cores))):
        raise SettingInvalid(
            f"{VISIBLE_CORES} takes {ACCEPTED}, ascending; not {','.join(map(str, cores))}",
            param=VISIBLE_CORES,
        )


def prepare_cores(wanted: int | None = None) -> int | None:
    """Before Ray starts and before torch_neuronx is imported: the visible cores, sorted, one by one.

    Ray's raylet ends on a range such as `0-1`, and hands cores out in the order of a set; the runtime takes
    ascending neighbours alone. Where nothing says which cores to use, any `wanted` free ones are asked for.
    Returns how many cores the process has, or `None` where that is not said.

    Raises:
        SettingInvalid: the variable is no list of neighbouring cores.
    """
    given = os.environ.get(VISIBLE_CORES, "").strip()
    if given:
        cores = sorted(read_cores(given))
        check_cores(cores)
        os.environ[VISIBLE_CORES] = ",".join(map(str, cores))
        return len(cores)
    number = os.environ.get(NUMBER_OF_CORES, "").strip()
    if number:
        if not re.fullmatch(r"[1-9]\d{0,2}", number):
            raise SettingInvalid(f"{NUMBER_OF_CORES} takes a number of cores; not {number!r}")
        return int(number)
    if wanted is not None:
        os.environ[NUMBER_OF_CORES] = str(wanted)
    return wanted
