"""The conversation on a terminal, or on pipes: answers on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.errors import MgptError

HELP = """\
/image FILE   show another image with the next question
/reset        begin anew, without images
/history      what was said so far
/save FILE    write the conversation; `mgpt4 chat --resume FILE` goes on with it
/help         this list
/quit         leave (Ctrl-D does too)
Ctrl-C breaks off an answer; what was broken off is not remembered."""

PROMPT = "> "


def converse(session: ChatSession, *, interactive: bool | None = None) -> int:
    """Read questions and commands from stdin until it ends.

    Args:
        session: the conversation.
        interactive: prompt, and keep the line editable; by default if stdin is a terminal.

    Returns:
        Exit code: 1 if anything that came from a pipe failed, since nobody saw the message.
    """
    interactive = sys.stdin.isatty() if interactive is None else interactive
    failed = False
    while True:
        line = _read(interactive)
        if line is None:
            return int(failed and not interactive)
        try:
            if not _obey(session, line):
                return int(failed and not interactive)
        except MgptError as error:
            failed = True
            _tell(f"error: {error}")
        except KeyboardInterrupt:
            _tell("\n(broken off)")


def _obey(session: ChatSession, line: str) -> bool:
    """Carry out one line; False ends the conversation."""
    line = line.strip()
    if not line:
        return True
    if not line.startswith("/"):
        _answer(session, line)
        return True
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command in ("/quit", "/exit"):
        return False
    actions: dict[str, Callable[[], None]] = {
        "/image": lambda: _image(session, rest),
        "/reset": lambda: _reset(session),
        "/history": lambda: _history(session),
        "/save": lambda: _save(session, rest),
        "/help": lambda: _tell(HELP),
    }
    if command not in actions:
        _tell(f"no command {command}; there are\n{HELP}")
    else:
        actions[command]()
    return True


def _answer(session: ChatSession, question: str) -> None:
    pieces = session.ask(question)
    try:
        while True:
            try:
                sys.stdout.write(_printable(next(pieces)))
                sys.stdout.flush()
            except StopIteration as end:
                answer = end.value
                break
    finally:
        pieces.close()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not answer.stopped:
        _tell("(cut off at the limit of tokens; --max-new-tokens raises it)")


def _printable(text: str) -> str:
    """Without control characters: what a model says must not steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _image(session: ChatSession, name: str) -> None:
    if not name:
        _tell("usage: /image FILE")
        return
    session.add_image(Path(name).expanduser())
    _tell(f"image {len(session.conversation.images)}: {name}")


def _reset(session: ChatSession) -> None:
    session.reset()
    _tell("begun anew; show an image with /image FILE")


def _history(session: ChatSession) -> None:
    for turn in session.conversation.turns:
        for image in turn.images:
            _tell(f"  [{image}]")
        _tell(f"{PROMPT}{turn.question}\n{turn.answer}")
    for image in session.conversation.pending:
        _tell(f"  [{image}]")


def _save(session: ChatSession, name: str) -> None:
    if not name:
        _tell("usage: /save FILE")
        return
    session.save(Path(name).expanduser())
    _tell(f"saved {len(session.conversation.turns)} turns in {name}")


def _read(interactive: bool) -> str | None:
    """The next line; None at the end."""
    try:
        if interactive:
            import readline  # noqa: F401 - makes the line editable, with its history

            return input(PROMPT)
        line = sys.stdin.readline()
        return line or None
    except EOFError:
        return None
    except KeyboardInterrupt:
        _tell("\n(/quit or Ctrl-D leaves)")
        return ""


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
