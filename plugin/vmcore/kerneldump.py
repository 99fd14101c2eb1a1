"""A dump where the kernel left it: on the dump device, or an image of it.

The device ends with struct kerneldumpheader in its last sector; before that
lies the dump, before that a copy of the header (sys/sys/kerneldump.h, version
1 to 11.x, version 4 from 12.0; sbin/savecore/savecore.c).  All its fields are
big-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Optional

from plugin.errors import DumpError
from plugin.vmcore.file import DumpFile
from plugin.vmcore.spool import compression

_SIZE = 512
_SECTORS = (512, 4096, 1024, 2048, 8192, 16384, 32768, 65536)
_MAGICS = {
    b"FreeBSD Kernel Dump": "dump",
    b"FreeBSD Text Dump": "text",
    b"Cleared Kernel Dump": "cleared",
}
_COMPRESSIONS = {0: "", 1: "gzip", 2: "zstd"}

_V1 = struct.Struct(">20s12sIIQQI64s192s192sI")
_V4 = struct.Struct(">20s12sIIQQII64s192s175sBQ4sI")


class DumpHeader(NamedTuple):
    """What struct kerneldumpheader says; ``start`` is the file offset of the dump."""

    #: "dump", "text" or "cleared"
    kind: str
    architecture: str
    length: int
    start: int
    #: bytes that it takes on the device, fewer than its length where it is compressed
    extent: int
    keysize: int
    compression: str
    hostname: str
    version: str
    panicstring: str


def last_header(file: DumpFile) -> Optional[DumpHeader]:
    """The header in the last sector, None where there is none or it is damaged."""
    for sector in _SECTORS:
        place = file.end - sector
        if place >= 0:
            header = parse_header(file.read(place, _SIZE), place)
            if header is not None:
                return header
    return None


def parse_header(data: bytes, place: int) -> Optional[DumpHeader]:
    """The header in ``data``, which lies at ``place``; None if it is none."""
    if len(data) != _SIZE:
        return None
    kind = _MAGICS.get(data[:20].rstrip(b"\0"))
    parity = 0
    for word in struct.unpack(">128I", data):
        parity ^= word
    if kind is None or parity:
        return None
    version = int.from_bytes(data[32:36], "big")
    keysize = compression = 0
    if version >= 4:
        (_, arch, _, _, length, _, keysize, _, host, text, panic, compression, extent, _, _) = (
            _V4.unpack(data)
        )
    else:
        _, arch, _, _, length, _, _, host, text, panic, _ = _V1.unpack(data)
        extent = length
    return DumpHeader(
        kind,
        _text(arch),
        length,
        place - extent,
        extent,
        keysize,
        _COMPRESSIONS.get(compression, f"method {compression}"),
        _text(host),
        _text(text),
        _text(panic),
    )


def dump_on_device(file: DumpFile, path: str) -> Optional[DumpHeader]:
    """The header of the dump at the end of a device or its image.

    None where there is no header; DumpError, saying what to do, where there
    is one of a dump that cannot be read in place.
    """
    header = last_header(file)
    if header is None:
        return None
    if header.kind == "text":
        raise DumpError(
            f"{path} is a dump device with a textdump, which has no memory in it: "
            "let savecore(8) extract it, then read ddb.txt and msgbuf.txt with tar"
        )
    if header.keysize:
        raise DumpError(
            f"{path} is a dump device with an encrypted dump: --key FILE names the private key "
            "that it was encrypted for"
        )
    start = header.start
    if start < 0 or header.length <= 0:
        raise DumpError(
            f"{path} ends with a kernel dump header of {header.length} bytes of dump, but is too "
            "short for them: copy the whole device"
        )
    head = file.read(start, 17)
    if not head.startswith((b"minidump FreeBSD/", b"\x7fELF")) and not (
        header.compression and compression(head)
    ):
        if header.kind == "cleared":
            raise DumpError(
                f"{path} is a dump device whose dump savecore(8) has saved already: "
                "look in /var/crash for vmcore.N"
            )
        raise DumpError(
            f"{path} ends with a kernel dump header, but the dump that should lie before it has "
            "been overwritten: has the device been used for swapping since?"
        )
    return header


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace").strip()
