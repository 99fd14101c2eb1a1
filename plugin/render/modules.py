"""The report of ``modules``, as kldstat(8) lists files, with the source of each one's names."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Tuple

from plugin.kernel.linker import LinkerFile, linker_files, memory_table
from plugin.kernel.module_file import module_file, module_table, module_types
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count


def linked(kernel: Kernel) -> Report:
    """Every file of linker_files, the kernel first; files that were refused, with the evidence."""
    files = linker_files(kernel)
    if not files:
        return _unknown(kernel)
    rows: List[Tuple[object, ...]] = []
    data: List[Dict[str, Any]] = []
    for place, file in enumerate(files):
        entry = _kernel(kernel, file) if place == 0 else _module(kernel, file)
        data.append(entry)
        rows.append(
            (
                file.id,
                file.refs,
                address(file.base),
                f"{file.size:x}",
                file.filename,
                _symbols(entry),
                _types(entry),
            )
        )
    report = Report({"modules": data})
    report.heading(f"{count(len(files) - 1, 'module')} beside the kernel:")
    report.table(
        ["id>", "refs>", "address", "size>", "name", "symbols", "types"], rows, limit=False
    )
    for entry in data:
        for refused in entry["refused"]:
            report.text(f"{refused['path']} is not used: {refused['why']}.")
    return report


def _unknown(kernel: Kernel) -> Report:
    """A list that names not even the kernel was not read: that is no machine without modules."""
    if not kernel.has_symbol("linker_files"):
        why = "no symbol of the kernel file tells where its list of them (linker_files) is"
    elif "linker_file" not in kernel.layouts:
        why = "no layout of struct linker_file is known for this kernel"
    else:
        why = "linker_files leads to no file, not even to the kernel's own"
    report = Report({"modules": None})
    report.text(f"Which modules are loaded is not known: {why}.")
    return report


def _entry(file: LinkerFile) -> Dict[str, Any]:
    return {
        "name": file.filename,
        "pathname": file.pathname or None,
        "id": file.id,
        "refs": file.refs,
        "address": address(file.base),
        "size": file.size,
        "linker": file.linker or None,
        "symbols": {"source": None, "count": None},
        "types": {"source": None, "path": None},
        "file": None,
        "matched_by": None,
        "refused": [],
    }


def _kernel(kernel: Kernel, file: LinkerFile) -> Dict[str, Any]:
    return {
        **_entry(file),
        "symbols": {"source": "file", "count": None},
        "types": {"source": kernel.layouts.name, "path": None},
    }


def _module(kernel: Kernel, file: LinkerFile) -> Dict[str, Any]:
    entry = _entry(file)
    table = module_table(kernel, file)
    found = module_file(kernel, file)
    types = module_types(kernel, file)
    if table is not None:
        source = "memory" if memory_table(kernel, file)[0] is not None else "file"
        entry["symbols"] = {"source": source, "count": table.table.count}
    path: Optional[str] = found.elf.path if found.elf is not None else None
    if types is not None:
        entry["types"] = {"source": types.name, "path": path}
    entry["file"] = path
    entry["matched_by"] = found.why or None
    entry["refused"] = [{"path": path, "why": why} for path, why in found.refused]
    return entry


def _symbols(entry: Dict[str, Any]) -> str:
    symbols = entry["symbols"]
    if symbols["source"] is None:
        return "none"
    if symbols["count"] is None:
        return "kernel file"
    where = "in memory" if symbols["source"] == "memory" else "of its file"
    return f"{symbols['count']} {where}"


def _types(entry: Dict[str, Any]) -> str:
    types = entry["types"]
    if types["source"] is None:
        return "structs.yaml"
    name = os.path.basename(types["path"] or "")
    return f"{types['source']} of {name}" if name else types["source"]
