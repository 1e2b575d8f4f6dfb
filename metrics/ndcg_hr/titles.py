"""How a title is compared: without outer white space and surrounding double quotes, as the reference does."""


def clean_title(title: str) -> str:
    """The title without outer white space, then without surrounding double quotes (reference: `.strip().strip('"')`)."""
    return title.strip().strip('"')
