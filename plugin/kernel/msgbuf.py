"""The kernel message buffer: struct msgbuf (sys/sys/msgbuf.h, sys/kern/subr_msgbuf.c)."""

from __future__ import annotations

import re

from plugin.errors import MemoryFault, WchanError
from plugin.session import Kernel

MSG_MAGIC = 0x063062
#: "<118>": the syslog priority that each line of user space and of log(9) carries
_PRIORITY = re.compile(r"^<\d{1,3}>", re.MULTILINE)


def message_buffer(kernel: Kernel) -> str:
    """The text written last, oldest first, as dmesg(8) shows it.

    Where the buffer's header is not one, the copy that a minidump begins with, with
    a finding; WchanError where there is none.  A buffer that lies partly outside the
    dump gives what is there, with a finding.
    """
    try:
        data = _ring(kernel)
    except WchanError as error:
        data = kernel.target.message_buffer
        if not data:
            raise
        kernel.warnings.add(
            "message buffer",
            error.address if isinstance(error, MemoryFault) else None,
            f"{error}; this is the dump's own copy, which may begin in its middle",
        )
    text = data.replace(b"\0", b"").decode("utf-8", "backslashreplace")
    return _PRIORITY.sub("", text)


def _ring(kernel: Kernel) -> bytes:
    """The ring of characters, unrolled."""
    view = kernel.view("msgbuf", kernel.global_value("msgbufp"))
    size, written = view.msg_size, view.msg_wseq
    if view.msg_magic != MSG_MAGIC or not 0 < size <= 1 << 26:
        raise WchanError(
            f"no message buffer at {view.address:#x} "
            f"(magic {view.msg_magic:#x}, should be {MSG_MAGIC:#x})"
        )
    # msg_wseq counts characters modulo a multiple of the size
    # (MSGBUF_SEQNORM); once it has wrapped the oldest character is at the write position.
    position = written % size
    pieces = [(view.msg_ptr + position, size - position), (view.msg_ptr, position)]
    data = b""
    for address, length in pieces:
        try:
            data += kernel.read(address, length) if length else b""
        except MemoryFault as fault:
            kernel.warnings.add("message buffer", fault.address, fault.reason)
            if fault.address > address:
                data += kernel.read(address, fault.address - address)
    if not data:
        raise WchanError(f"the message buffer at {view.msg_ptr:#x} is not in the dump")
    return data
