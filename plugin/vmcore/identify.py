"""What a file is that turned out to be no dump, and what to do about it: one clear line."""

from __future__ import annotations

import os
import re

from plugin.vmcore.file import DumpFile
from plugin.vmcore.kerneldump import parse_header

_KDUMP = (
    "compressed as kdump does it: of a guest of QEMU's (dump it again without -z, -l and -s) or of "
    "a Linux kernel (read it with crash or drgn)"
)
_SIGNATURES = (
    (b"KDUMP   ", _KDUMP),
    (b"makedumpfile", _KDUMP),
    (b"PAGEDU", "a Windows crash dump"),
    (b"MDMP", "a Windows minidump"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file, of macOS"),
    (b"\xce\xfa\xed\xfe", "a Mach-O file, of macOS"),
    (b"QFI\xfb", "a qcow2 disk image: convert it with qemu-img convert -O raw, or take the "
     "dump inside the machine"),
    (b"KDMV", "a VMware disk image: take the vmcore out of the file system in it"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: decompress it first (lz4 -d)"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x1f\x9d", "compressed with compress(1): decompress it first"),
)  # fmt: skip

_TEXTS = (
    (
        re.compile(rb"\ADump header from device"),
        "savecore's description of a dump (info.N); the dump itself is vmcore.N beside it",
    ),
    (
        re.compile(rb"dumped core - see"),
        "crashinfo's report (core.txt.N); the dump itself is vmcore.N beside it",
    ),
    (
        re.compile(rb"\Aversion https://git-lfs"),
        "a Git LFS pointer: fetch the file itself with git lfs pull",
    ),
)


def explain(file: DumpFile, path: str) -> str:
    """One sentence that begins with the path: what the file is, and what to do."""
    return f"{path} is {_what(file, os.path.basename(path))}"


def _what(file: DumpFile, name: str) -> str:
    head = file.read(file.start, 1024)
    size = file.end - file.start
    if not size:
        return "empty"
    if name.startswith("vmcore_encrypted"):
        return (
            "an encrypted dump: --key FILE names the private key that it was encrypted for; "
            "key.N has to lie beside it"
        )
    header = parse_header(head[:512], 0)
    if header is not None:
        return (
            "a kernel dump header without its dump: the dump lies at the end of the dump device; "
            "let savecore(8) extract it"
        )
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            return what
    if head[257:262] == b"ustar":
        members = (b"ddb.txt", b"config.txt", b"msgbuf.txt", b"panic.txt", b"version.txt")
        if head.startswith(members):
            return (
                "a textdump: text that DDB wrote, no memory; unpack it with tar and read ddb.txt, "
                "msgbuf.txt and panic.txt"
            )
        return "a tar archive: unpack it first"
    if head[512:520] == b"EFI PART" or head[510:512] == b"\x55\xaa":
        return (
            "the image of a whole disk: copy the dump partition (usually swap) out of it, or "
            "take vmcore.N from /var/crash in its file system"
        )
    if not head.strip(b"\0"):
        return "no dump: it begins with zeros; was it copied whole?"
    if _is_text(head):
        for pattern, what in _TEXTS:
            if pattern.search(head):
                return what
        return "a text file, not a dump"
    return (
        "no FreeBSD kernel dump: it begins neither as a minidump nor as an ELF core, and ends "
        "with no kernel dump header; an encrypted dump looks like this, see decryptcore(8)"
    )


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    odd = sum(byte < 9 or 13 < byte < 32 or byte == 127 for byte in head)
    try:
        # A character may be cut at the end of what was read.
        head[: len(head) - 4 if len(head) > 8 else None].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 8:
            return False
    return odd * 50 < len(head)
