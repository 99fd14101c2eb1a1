"""Reports as files: whole or not at all, for their owner alone, never over their own input."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import Sequence

from plugin.errors import WchanError


def write_file(path: str, text: str, inputs: Sequence[str] = ()) -> None:
    """Write ``text`` to a new file in the folder of ``path``, then give it that name.

    What comes out of a dump holds a machine's secrets: mode 0600.  WchanError where it
    cannot be written, and where ``path`` is one of ``inputs``.  A device or a pipe
    (/dev/stdout) is written to as it is.
    """
    for name in inputs:
        with suppress(OSError):
            if os.path.samefile(path, name):
                raise WchanError(f"cannot write {path}: it is what the report is made of")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as device:
                device.write(text)
            return
        # Through a link to the file it stands for, whose folder may be another.
        target = os.path.realpath(path)
        handle, part = tempfile.mkstemp(
            prefix=f".{os.path.basename(target)}.", dir=os.path.dirname(target)
        )
        try:
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    except OSError as error:
        raise WchanError(f"cannot write {path}: {error.strerror}") from None
