"""Forged machines: small dumps in FreeBSD's own formats, made from a description in Python.

For the demo and for tests.  A forged dump proves analysis, never layouts: it
is written with the same structs.yaml that the product reads it with.

    >>> from tests.forge.machine import Machine
    >>> m = Machine(1402000)                             # 14.2 on amd64; or 700014, "i386"
    >>> lock = m.locks.mutex("example lock")
    >>> holder = m.procs.process("holder").thread(calls=("kern_example", "sys_example"))
    >>> waiter = m.procs.process("waiter").thread(calls=("kern_example", "sys_example"))
    >>> lock.owned_by(holder); waiter.blocks_on(lock, seconds=90)
    >>> disk = m.geom.disk("da", 0, mediasize=1 << 30)
    >>> root = m.vfs.ffs("/", m.geom.vfs(disk.provider))
    >>> buf = m.bufs.buf(m.vfs.vnode(root), 0, owner=holder)
    >>> m.bufs.start(buf, root, seconds=95).to_device()  # or .queued_down(), .queued_up()
    >>> buf.waited_by(holder, "biord", seconds=95)
    >>> vmcore, kernel = m.write("/tmp/example")         # wchan -k kernel vmcore why-stuck

What the description leaves out is as on an idle machine: the threads every
kernel has (``m.services["pagedaemon"]`` to make one of them do something), a page
array whose counts agree, empty queues.  ``m.vm.set_counts(free=0)`` takes the
memory away; ``m.at_the_end(...)`` changes memory when all is linked, which is how a
list is corrupted; ``m.cast`` and ``m.expected`` are for the tests.

Versions: every kernel of structs.yaml (i386, amd64, arm64; 7.0-CURRENT of 2006 to
15.0); what differs between them is met here, by probing for members.

Modules: ``memory`` (pages and the kernel's map), ``paging``, ``formats`` and ``elf``
(page tables, dumps, kernel file), ``builder`` (structs, symbols, the lists of
sys/queue.h), ``machine``, then one per subsystem in FreeBSD's words: ``procs``,
``locks``, ``services``, ``geom``, ``bufs``, ``vfs``, ``vm``, ``uma``.  ``demo`` makes the
dump of ``wchan demo``.

``scenarios``: ``storage_deadlock`` and ``sendfile_panic`` (the two reports),
``deadlocks`` (every lock; rings, diamonds, tails, shared owners), ``memory`` (no
memory, lost wakeups, busy pages), ``pbufs``, ``geom_tour`` (all of GEOM; corrupted
queues), ``scale`` (for benchmarks).
"""
