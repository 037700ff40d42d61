"""The form in which a URL is known.

Two spellings of one page must be one word of the vocabulary. For now only what can never change the page is
removed: the white space around a URL, and the fragment, which no server ever sees. Query strings, ports, trailing
slashes and letter case stay as they came: on some sites they *are* the page.

Promises: pure, never raises, `canonical(canonical(url)) == canonical(url)`. Does not judge whether a URL is valid;
that is for whoever decodes the record.
"""


def canonical(url: str) -> str:
    """The URL without the white space around it and without its fragment.

    >>> canonical(" https://shop.example/cart?step=2#total ")
    'https://shop.example/cart?step=2'
    """
    return url.partition("#")[0].strip()
