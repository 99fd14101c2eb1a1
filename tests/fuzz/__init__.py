"""Parsers of bytes and text, fed what nobody wrote: see ``__main__`` and ``parsers``."""
