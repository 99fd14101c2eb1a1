"""The kernel message buffer: struct msgbuf (sys/sys/msgbuf.h, sys/kern/subr_msgbuf.c)."""

from __future__ import annotations

import re

from plugin.errors import MemoryFault, WchanError
from plugin.session import Kernel
from plugin.targets.msgbuf import ring

#: "<118>": the syslog priority that each line of user space and of log(9) carries
_PRIORITY = re.compile(r"^<\d{1,3}>", re.MULTILINE)


def message_buffer(kernel: Kernel) -> str:
    """The text written last, oldest first, as dmesg(8) shows it.

    Where the buffer's header is not one, the copy that a minidump begins with, with
    a finding; WchanError where there is none.  A buffer that lies partly outside the
    dump gives what is there, with a finding.
    """
    try:
        data, faults = ring(kernel.target)
        for fault in faults:
            kernel.warnings.add("message buffer", fault.address, fault.reason)
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
