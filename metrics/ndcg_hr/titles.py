"""How a title is compared: without outer white space and surrounding double quotes."""


def clean_title(title: str) -> str:
    """The title without outer white space, surrounding double quotes, and white space within those.

    The reference strips `.strip().strip('"')`; the last strip is ours: a catalog title that begins with a space (342 of
    the game catalog's do) would otherwise not match the same title in quotes, as targets and answers are written.
    """
    return title.strip().strip('"').strip()
