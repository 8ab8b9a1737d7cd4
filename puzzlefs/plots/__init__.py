"""Pictures of what images weigh and share, drawn with matplotlib, which nothing else here needs."""

from puzzlefs.plots.figure import check_plot
from puzzlefs.plots.image import plot_image
from puzzlefs.plots.layout import plot_layout

__all__ = ["check_plot", "plot_image", "plot_layout"]
