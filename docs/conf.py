"""Builds the site from the pages of this folder: ``sphinx-build -W -n docs build/site`` (extra ``docs``)."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from typing import TYPE_CHECKING, Any

from sphinx.util.inspect import stringify_signature

if TYPE_CHECKING:
    from docutils import nodes
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "guardrails"
author = "The guardrails-db authors"
release = version = importlib.metadata.version("guardrails-db")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_static"]
nitpicky = True
# What stands in single backticks in a docstring is code.
default_role = "code"

# The pages are plain Markdown: headings get the anchors that a repository host gives them.
myst_heading_anchors = 4

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"guardrails {release}"
html_static_path = ["_static", "demo-dark.svg"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"footer_icons": []}
copybutton_exclude = ".linenos, .gp, .go"


def _to_public_name(
    _app: Sphinx, environment: BuildEnvironment, node: Element, text: Element
) -> Element | None:
    """Links a type's private module to its public name; a type that has no entry here is plain text.

    A public name of ours that does not exist stays unresolved, which ``-W`` makes an error.
    """
    target: str = node.get("reftarget", "")
    if node.get("refdomain") != "py" or (target.startswith("guardrails.") and "._" not in target):
        return None
    python = environment.domains.python_domain
    public = [name for name in python.objects if name.endswith("." + target.rpartition(".")[2])]
    if not target.startswith("guardrails.") or len(public) != 1:
        return text
    place, builder = node["refdoc"], environment.app.builder
    return python.resolve_xref(environment, place, builder, "obj", public[0], node, text)


_SHOWN = {
    r", \*\*\w+: [~\w.]*Never": "",
    r"<built-in function monotonic>": "time.monotonic",
    r"<built-in method random of [^>]*>|_random\.random": "random.random",
    r"~typing\.~P\b": "P",
}
"""Patterns in a signature, and the text that the site shows for each."""


def _real_signature(
    _app: Sphinx,
    what: str,
    _name: str,
    of: type,
    _options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Leaves out what only names a misspelt option (``**unknown: Never``, a ``__new__``), and shows names."""
    if what == "class" and "__new__" in vars(of):
        made = inspect.signature(of.__init__)
        signature = stringify_signature(made.replace(parameters=[*made.parameters.values()][1:]))
    for found, shown in _SHOWN.items():
        signature = signature and re.sub(found, shown, signature)
    return signature, returns


def _without_rules(
    _app: Sphinx, what: str, _name: str, _of: object, _options: object, lines: list[str]
) -> None:
    """Leaves out which modules a module may import, which is for those who work on it."""
    if what == "module":
        text = re.sub(r"[ \n]*(Depends on|Must not|Pure:)[^.]*\.", "", "\n".join(lines))
        lines[:] = text.splitlines()


def _breakable(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: nodes.document | None
) -> None:
    """Lets a long name in code break after an underscore or a dot; site.css confines that to tables."""
    context["body"] = re.sub(
        r'(?<=<span class="pre">)[^<]+',
        lambda found: re.sub(r"[_.](?=\w)", r"\g<0><wbr>", found[0]),
        context.get("body", ""),
    )


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("html-page-context", _breakable)
    app.connect("missing-reference", _to_public_name)
    app.connect("autodoc-process-signature", _real_signature)
    app.connect("autodoc-process-docstring", _without_rules)
