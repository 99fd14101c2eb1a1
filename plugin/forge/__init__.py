"""Forged machines: small dumps in FreeBSD's own formats, made from a description in Python.

For the demo and for tests.  A forged dump proves analysis, never layouts: it
is written with the same structs.yaml that the product reads it with.

    >>> from plugin.forge.machine import Machine
    >>> m = Machine(1402000)
    >>> lock = m.locks.mutex("example lock")
    >>> holder = m.procs.process("holder").thread(calls=("kern_example", "sys_example"))
    >>> waiter = m.procs.process("waiter").thread(calls=("kern_example", "sys_example"))
    >>> lock.owned_by(holder); waiter.blocks_on(lock); holder.sleeps(m.take(8), "example")
    >>> vmcore, kernel = m.write("/tmp/example")

Modules: ``memory`` (pages and the kernel's map), ``paging``, ``formats`` and
``elf`` (the formats), ``builder`` (structs, symbols, lists of sys/queue.h),
``machine`` (one machine), then one per subsystem, in FreeBSD's words.
``scenarios`` holds the machines that the demo and the tests describe.
"""
