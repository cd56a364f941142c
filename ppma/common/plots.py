"""Share colors, the style sheet of HTML pages, and figures as SVG text among reports.

matplotlib Figure  ->  svg  ->  text for a page, the same bytes for the same figure
"""

import io

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

GRAY, BLUE, ORANGE = "#8c97a3", "#1f6fb2", "#c8621b"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 1.4rem } .wide { overflow-x: auto }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e3e8ed; vertical-align: top }
th { border-bottom: 2px solid #9aa5b1; font-weight: 600 }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 14rem }
td { white-space: nowrap } tr.best td { font-weight: 600 } svg { max-width: 100%; height: auto } code, pre { font-size: 12px }
pre { background: #f4f6f8; padding: .5rem; overflow-x: auto; white-space: pre-wrap; word-break: break-all }
details { border-bottom: 1px solid #e3e8ed; padding: .25rem 0 } summary { cursor: pointer } .note { color: #55626f; font-size: 13px }
"""


def svg(figure: Figure) -> str:
    """Return the figure as SVG text without date and random ids; letters stay text."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "ppma", "svg.fonttype": "none", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
