"""Render HTML, Markdown and JSON reports from jinja2 templates.

<package>/templates/<name>, values  ->  render()  ->  text, values escaped in .html templates
"""

from functools import cache

import jinja2


@cache
def _environment(package: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    return environment


def percent(share: float | None, unit: str = "") -> str:
    """Return a share as a percentage with one decimal place and the unit, or "-" for None."""
    return "-" if share is None else f"{100 * share:.1f}{unit}"


def render(package: str, template: str, **values: object) -> str:
    """Fill in a template of a package's folder `templates`.

    Args:
        package: The package, `__package__` of the caller.
        template: File name; values are escaped if it ends in .html.
        values: The template's variables; a missing one is an error.
    """
    return _environment(package).get_template(template).render(**values)
