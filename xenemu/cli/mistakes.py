"""Mistakes in a command line, told in one line each.

The parser of arguments would tell each in a line of usage, a hint and a sentence of its own.
"""

from __future__ import annotations


def mistake_in(error: Exception, command: str = "xenemu") -> str:
    """What is wrong, and what to do; empty if the parser did not find this error.

    In different versions of the parser, the class of such errors is in different places. All of
    them have `format_message`, and what is asked for here: `possibilities` are options with nearly
    the name. `command` is whose help is named if the error does not know.
    """
    if not hasattr(error, "format_message"):
        return ""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    words = " ".join(error.format_message().split()).rstrip(".")
    if guesses := getattr(error, "possibilities", None):
        words = f"{error.args[0].rstrip('.')}; did you mean {' or '.join(sorted(guesses))}?"
    elif parameter is not None and error.args[0]:  # a value that the parameter cannot have
        words = f"{parameter.opts[-1]}: {error.args[0].removeprefix('Value error, ').rstrip('.')}"
    where = context.command_path if context else command
    return f"{words[:1].lower()}{words[1:]}; see {where} --help"
