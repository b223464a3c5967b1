"""Exit 0 if the server at the given URL answers, 1 if not: what the images' HEALTHCHECK runs."""

import sys
import urllib.request

try:
    with urllib.request.urlopen(sys.argv[1], timeout=4) as answer:
        answer.read(1)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
