"""Making a capsule: a core reduced to what the reports read (docs/capsule.md).

``record`` watches what is read, ``elf`` reduces the kernel to its names, ``write`` packs both,
``redact`` replaces what tells of people.  ``plugin.vmcore.capsule`` reads the file.
"""
