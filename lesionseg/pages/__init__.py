"""What the pages share that open from disk and send no request: template, style, policy, pictures within them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def template(folder: Path) -> Template:
    """`page.html` of a folder. All that is put into it is escaped, and a name that it is not given is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")


def shared_style() -> str:
    """The style of every page."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def policy(style: str, *scripts: str) -> str:
    """A Content-Security-Policy that lets this style and these scripts into a page, and pictures from `data:` alone.

    `default-src 'none'` forbids every request, WebAssembly, workers, fonts and frames.
    """
    allowed = f"script-src {' '.join(map(inline_source, scripts))}; " if scripts else ""
    return (
        f"default-src 'none'; {allowed}style-src {inline_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def inline_source(text: str) -> str:
    """The CSP source expression of an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def css_color(color: tuple[int, int, int]) -> str:
    """`#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def data_address(content: bytes, kind: str) -> str:
    """A file as a `data:` address; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
