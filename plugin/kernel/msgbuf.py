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

    WchanError where the buffer's header is not one.  A buffer that lies partly
    outside the dump gives what is there, with a finding.
    """
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
    text = data.replace(b"\0", b"").decode("utf-8", "backslashreplace")
    return _PRIORITY.sub("", text)
