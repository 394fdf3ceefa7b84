"""Settings of Sphinx for the site; build.py runs it."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from hsmcore import __version__

project = "hsmcore"
copyright = "Apache-2.0"  # noqa: A001  # Sphinx's name
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = [".doctrees"]
root_doc = "index"

html_theme = "furo"
html_title = "hsmcore"
html_static_path: list[str] = []  # build.py names the folder
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for files
html_theme_options = {
    "navigation_with_keys": False,
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7ab7ff", "color-brand-content": "#7ab7ff"},
}

pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 6
myst_fence_as_directive = {"mermaid"}
highlight_language = "text"
smartquotes = False
suppress_warnings = ["misc.highlighting_failure"]  # fragments of JSON have a … in them

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"


class Mermaid(SphinxDirective):
    """A diagram. The browser draws it: static/site.js."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return its text, in the element that mermaid looks for."""
        text = escape("\n".join(self.content))
        return [nodes.raw("", f'<div class="diagram"><pre class="mermaid">{text}</pre></div>', format="html")]


def name_levels(_app: Any, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Give the captions of the navigation, which the theme calls headings, a level."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Any) -> dict[str, bool]:
    """Register what is ours. Sphinx calls it."""
    app.add_directive("mermaid", Mermaid)
    app.connect("html-page-context", name_levels, priority=900)  # after the theme
    return {"parallel_read_safe": True, "parallel_write_safe": True}
