"""How all charts look: as SVG, so that texts follow the page's colours, and readable on light and on dark."""

from typing import Any, Final

from nicegui import ui

_GRID: Final = {"splitLine": {"lineStyle": {"color": "#8a94a3", "opacity": 0.35}}}
COLORS: Final = ("#4f7fe0", "#c8553d", "#2e8b57", "#a9741c", "#8e62d9", "#1f8a99", "#c2527a", "#7a8699")
"""Of series; each has a contrast above 3 on a light and on a dark page."""


def chart(options: dict[str, Any], said: str, **axes: dict[str, Any]) -> ui.echart:
    """A chart; `said` is what a screen reader says of it, `axes` are `xAxis` and `yAxis`.

    Texts in it are drawn, never markup. Its options' keys must be ours: NiceGUI runs what stands under a key that
    begins with a colon.
    """
    for name, axis in axes.items():
        options[name] = {**_GRID, "axisLabel": {"hideOverlap": True}, **axis}
    made = ui.echart(
        {
            "animation": False,
            "color": list(COLORS),
            "tooltip": {"renderMode": "richText"},
            **options,
        },
        renderer="svg",
    ).classes("chart")
    made.props.update({"role": "img", "aria-label": said})
    return made
