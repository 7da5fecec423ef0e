"""Refuses answers from which no distribution could be made, before anything is written."""

import re
import sys

NAME = {{ cookiecutter.name | jsonify }}
TEXTS = {"description": {{ cookiecutter.description | jsonify }}, "author": {{ cookiecutter.author | jsonify }}}

if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", NAME):
    sys.exit(f"the name {NAME!a} is refused: it takes lower-case letters and digits, with single hyphens in between")
for what, text in TEXTS.items():
    if not text.strip() or not text.isprintable() or '"' in text or "\\" in text:
        sys.exit(f"the {what} {text!a} is refused: it takes a line of text without quotation marks and backslashes")
