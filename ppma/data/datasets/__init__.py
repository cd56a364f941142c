"""One short file for each data set: its facts and how its owners' files are read. A file that lies here is found; nothing lists it.

--dataset NAME  ->  find  ->  Dataset (see ppma.data.adapter)
"""

import difflib
import importlib
import pkgutil

from ppma.config.errors import InputError
from ppma.data.adapter import Dataset


def known() -> dict[str, Dataset]:
    """Name -> data set, sorted by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {found.name: found for found in sorted((module.DATASET for module in modules), key=lambda found: found.name)}


def find(name: str) -> Dataset:
    """The data set of this name; InputError lists them all."""
    datasets = known()
    if name not in datasets:
        close = difflib.get_close_matches(name, datasets, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"--dataset: there is no {name!r}; {hint}They are {', '.join(datasets)} (`ppma datasets`)")
    return datasets[name]
