"""A report as JSON: the envelope of the contract, schema wchan/1."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional

from plugin.findings import Findings
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address

SCHEMA = "wchan/1"


def kernel_facts(kernel: Kernel) -> Dict[str, Any]:
    return {
        "release": kernel.release,
        "osreldate": kernel.osreldate,
        "ident": kernel.ident,
        "arch": kernel.arch,
        "variant": kernel.variant,
        "layouts": kernel.layouts.name,
        "panic": kernel.panicstr,
    }


def envelope(
    command: str, kernel: Optional[Kernel], report: Report, findings: Findings
) -> Dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": command,
        "kernel": kernel_facts(kernel) if kernel is not None else None,
        "data": report.data,
        "warnings": [
            {"what": f.what, "address": address(f.address), "detail": f.detail} for f in findings
        ],
        "partial": findings.partial,
    }


def render(command: str, kernel: Optional[Kernel], report: Report, findings: Findings) -> str:
    return json.dumps(envelope(command, kernel, report, findings), indent=1) + "\n"


def error(command: str, reason: str, message: str) -> str:
    """What a command that failed gives in place of its report; schema in error.schema.json."""
    said = {"reason": reason, "message": message}
    return json.dumps({"schema": SCHEMA, "command": command, "error": said}, indent=1) + "\n"
