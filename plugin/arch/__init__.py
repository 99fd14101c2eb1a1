"""What differs between the architectures: minidump headers and page tables."""

from __future__ import annotations

from typing import Dict, Tuple, cast

from plugin.arch import amd64, arm64, i386, riscv64
from plugin.arch.common import Architecture

_ALL = cast(Tuple[Architecture, ...], (amd64, i386, arm64, riscv64))

#: the first bytes of a minidump to the module that reads it
BY_MAGIC: Dict[bytes, Architecture] = {module.MAGIC: module for module in _ALL}
#: uname's name of the architecture to the module
BY_NAME: Dict[str, Architecture] = {module.NAME: module for module in _ALL}
