"""YAML files that wchan comes with or is given: parsed once, then found in the cache.

The cache is keyed by the file's content, so nothing in it can be stale.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from plugin.errors import WchanError
from plugin.structs.cache import cache_key, cache_read, cache_write


def load(path: str, what: str) -> Any:
    """What a YAML file says; None where it is empty.

    ``what`` names the file in the WchanError that is raised where it cannot be read, is not
    UTF-8, or is not YAML.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read()
    except OSError as error:
        raise WchanError(f"cannot read {what} {path}: {error.strerror}") from None
    key = cache_key("yaml", raw)
    known = cache_read(key)
    if known is not None:
        return known.get("data")
    try:
        data = parse(raw.decode())
    except UnicodeDecodeError:
        raise WchanError(f"{what} {path} is not text in UTF-8") from None
    except ValueError as error:
        raise WchanError(f"{what} {path} is not YAML: {error}") from None
    # A date or a set: JSON has none, and neither has a row that makes sense.
    with suppress(TypeError):
        cache_write(key, {"data": data})
    return data


def parse(text: str) -> Any:
    """What a YAML document says; ValueError, in one line, where it is none."""
    # Imported here: a start with a warm cache needs no YAML parser.
    import yaml

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error) or "malformed"
        raise ValueError(where + " ".join(str(problem).split())) from None
