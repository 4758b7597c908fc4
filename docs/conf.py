"""Sphinx builds these pages: `make docs`. A warning is an error, and so is a reference without a target."""

import logitcache

project = "logitcache"
author = "the logitcache authors"
copyright = "the logitcache authors"
version = release = logitcache.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "pydata_sphinx_theme"
html_title = "logitcache"
html_theme_options = {"navigation_with_keys": False, "show_prev_next": False}
html_sidebars = {"index": []}

# Pages link to headings of other pages by the names that GitHub gives them.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpick_ignore_regex = [
    ("py:.*", r"(?!logitcache).*"),  # the build needs no network, so names of other libraries aren't looked up
    ("py:class", r"logitcache\.\w+\..*"),  # types of signatures that the API page doesn't describe
]
