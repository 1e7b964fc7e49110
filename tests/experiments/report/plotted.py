"""What is read off a figure."""


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def assert_inside(figure):
    """Checks that no label or legend lies outside the picture (in inches)."""
    figure.canvas.draw()
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02
